// SPDX-License-Identifier: Apache-2.0
// How two maps are divided on the CPU, and the memory of a thread, which desks have to know too.
#pragma once

#include "attention/maps.h"
#include "attention/rooms_cpu.h"

namespace fastdiff::attention {
namespace {

inline constexpr int kMapKeys = 64;  // keys at a time

// Queries at a time, whole registers of any kind: the exponentials of all their scores, for both maps, should
// stay in a second-level cache of 2 MiB. The same for every instruction set, as the order of the sums of dk
// depends on it.
inline int block_queries(const Maps& m) {
  constexpr int64_t kCached = 2 * 1024 * 1024;
  const int64_t bytes = 2 * m.extent.keys * (m.wide() ? 8 : 4);
  return bytes * 64 <= kCached ? 64 : bytes * 32 <= kCached ? 32 : 16;
}

// Shares of a head's queries that threads take, whatever the number of threads: each has sums of dk of its
// own.
inline int64_t head_shares(const Maps& m) {
  constexpr int64_t kFewest = 256, kMost = 4;  // queries; shares
  const int64_t shares = m.extent.queries / kFewest;
  return shares < 1 ? 1 : shares < kMost ? shares : kMost;
}

// Blocks of queries, and of keys, of a head.
inline int64_t head_blocks(const Maps& m) {
  return rounded_up(m.extent.queries, block_queries(m)) / block_queries(m);
}
inline int64_t key_blocks(const Maps& m) {
  return rounded_up(m.extent.keys, kMapKeys) / kMapKeys;
}

inline int64_t map_items(const Maps& m) {
  return m.extent.samples * m.extent.heads * head_shares(m);
}
inline int64_t map_parts(const Maps& m, int threads) {
  const int64_t items = map_items(m);
  return items < threads ? items : threads;
}

// Elements of one thread's memory: of a block of queries the exponentials of both maps, their factors by
// blocks of keys, and the queries in strips; the softmax's state; a head's keys of both, if they have to be
// converted.
struct MapRoom {
  int64_t lanes, exponentials, factors, strips, keys;

  explicit MapRoom(const Maps& m)
      : lanes(block_queries(m)),
        exponentials(m.extent.keys * lanes),
        factors(key_blocks(m) * lanes),
        strips(lanes * m.extent.head_dim),
        keys(rounded_up(m.extent.keys * m.extent.head_dim, kMostWidth)) {}

  int64_t numel() const { return 2 * exponentials + 2 * factors + strips + 3 * lanes + 2 * keys; }
};

// Of all threads: the blocks' energies.
inline int64_t energies_bytes(const Maps& m) {
  return rounded_up(m.extent.samples * m.extent.heads * head_blocks(m), kMostWidth) * 8;
}

}  // namespace
}  // namespace fastdiff::attention
