// SPDX-License-Identifier: Apache-2.0
// What a pair of tokens gives to the gradients, for lanes of any kind; and what a thread of
// attention_map_energy_gradient needs on the CPU, which the desk has to know too.
#pragma once

#include "attention/attention_map_energy_gradient/attention_map_energy_gradient.h"
#include "attention/maps_room.h"

namespace fastdiff::attention_map_energy_gradient {
namespace {

using attention::Pair;

// The row's sum of A D.
template <class V>
FASTDIFF_HD V add_mean(V sum, const Pair<V>& pair) {
  return fma_(pair.weight, pair.difference, sum);
}
// ds, but for its factor.
template <class V>
FASTDIFF_HD V score_gradient(const Pair<V>& pair, V mean) {
  return mul(pair.weight, sub(pair.difference, mean));
}

// Elements of one thread's memory besides the two maps of a block of queries: energies and means, ds with a
// block of keys, dq in strips, queries in rows of whole registers.
struct Room {
  int64_t wide_dim, lanes, block, strips, rows;

  explicit Room(const Params& p)
      : wide_dim(attention::rounded_up(p.extent.head_dim, attention::kMostWidth)),
        lanes(attention::block_queries(p)),
        block(attention::kMapKeys * lanes),
        strips(lanes * p.extent.head_dim),
        rows(lanes * wide_dim) {}

  int64_t numel() const { return 2 * lanes + block + strips + rows; }
};

inline int64_t room_numel(const Params& p) {
  return attention::MapRoom(p).numel() + Room(p).numel();
}

// Of all threads: dk of each share of a head's queries.
inline int64_t key_sums_numel(const Params& p) {
  return attention::map_items(p) * p.extent.keys * Room(p).wide_dim;
}

}  // namespace
}  // namespace fastdiff::attention_map_energy_gradient
