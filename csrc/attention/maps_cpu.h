// SPDX-License-Identifier: Apache-2.0
// Two maps of a block of queries on the CPU: of all their scores the exponentials, which stay in the cache
// until everything is done that needs the rows' sums. So each score is computed once.
#pragma once

#include <algorithm>

#include "attention/blocks_cpu.h"
#include "attention/maps_room.h"
#include "attention/strip.h"
#include "core/reduce_cpu.h"

namespace fastdiff::attention {
namespace {

// Some queries of a head, in strips of `lanes`.
struct QueryBlock {
  int64_t b, h, first;
  int queries, lanes, strips;
  int64_t across;  // lanes of all strips
};

// One thread's part of the work.
template <class T>
class MapRows {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int w = L::width;

 public:
  MapRows(const Maps& maps, T*& memory) : maps_(maps), dim_(maps.extent.head_dim) {
    const MapRoom room(maps);
    const auto take = [&memory](int64_t count) {
      T* const taken = memory;
      memory += count;
      return taken;
    };
    for (T*& map : exponentials_) map = take(room.exponentials);
    for (T*& map : factors_) map = take(room.factors);
    strips_ = take(room.strips);
    for (T** state : {&highest_, &total_, &shrink_}) *state = take(room.lanes);
    for (T*& map : converted_) map = take(room.keys);
  }

  void enter_head(int64_t b, int64_t h) {
    for (int map = 0; map < 2; ++map)
      keys_[map] = rows_of(maps_.k[map], maps_.k[map].rows(b, h, 0), static_cast<int>(maps_.extent.keys),
                           dim_, converted_[map]);
  }

  template <int kRegisters>
  void fill(const QueryBlock& block) {
    for (int map = 0; map < 2; ++map) fill_map<kRegisters>(block, map);
  }

  // Calls body(pair, j, n) for key j of a block of keys and register n of a strip.
  template <int kRegisters, class Body>
  void each_pair(const QueryBlock& block, int64_t key_block, int strip, const Body& body) const {
    V factor[2][kRegisters];
    const int64_t at = int64_t{strip} * block.lanes, first = key_block * kMapKeys;
    for (int map = 0; map < 2; ++map)
      for (int n = 0; n < kRegisters; ++n)
        factor[map][n] = L::load(factors_[map] + key_block * block.across + at + n * w);
    for (int j = 0; j < keys_of(key_block); ++j)
#pragma GCC unroll 4
      for (int n = 0; n < kRegisters; ++n) {
        const int64_t e = (first + j) * block.across + at + n * w;
        body(pair_of(mul(L::load(exponentials_[0] + e), factor[0][n]),
                     mul(L::load(exponentials_[1] + e), factor[1][n])),
             j, n);
      }
  }

  int keys_of(int64_t key_block) const {
    return static_cast<int>(std::min<int64_t>(kMapKeys, maps_.extent.keys - key_block * kMapKeys));
  }
  // [keys_of(key_block)][D] of the map itself.
  const T* keys(int64_t key_block) const { return keys_[0] + key_block * kMapKeys * dim_; }

 private:
  template <int kRegisters>
  void fill_map(const QueryBlock& block, int map) {
    const int64_t across = block.across, blocks = key_blocks(maps_);
    load_transposed<T>(maps_.q[map], maps_.q[map].rows(block.b, block.h, block.first), block.queries, dim_,
                       static_cast<T>(maps_.scale * kLog2E), block.lanes, strips_);
    std::fill_n(highest_, across, kLowest<T>);
    std::fill_n(total_, across, T(0));
    T *const exponentials = exponentials_[map], *const factors = factors_[map];
    for (int64_t kb = 0; kb < blocks; ++kb) {
      const int keys = keys_of(kb);
      for (int64_t at = 0; at < across; at += block.lanes) {
        const Block<T> scores{exponentials + kb * kMapKeys * across + at, across, keys};
        product<Start::zero, Unit::step, kRegisters>(Factor<T>{keys_[map] + kb * kMapKeys * dim_, dim_, 1},
                                                     strips_ + at * dim_, block.lanes, dim_, scores.data,
                                                     across, keys);
        softmax_block<kRegisters>(scores, Bias<T>{}, Running<T>{highest_ + at, total_ + at, shrink_ + at});
      }
      std::copy_n(highest_, across, factors + kb * across);
    }
    for (int64_t at = 0; at < across; at += block.lanes)
      finish<kRegisters>(Block<T>{factors + at, across, static_cast<int>(blocks)}, at);
  }

  // From the maxima that the exponentials of each block are relative to, to what makes them the map's.
  template <int kRegisters>
  void finish(const Block<T>& factors, int64_t at) {
    V ignored[kRegisters], part[kRegisters];
    for (int n = 0; n < kRegisters; ++n) {
      ignored[n] = splat<V>(T(0));
      part[n] = div(splat<V>(T(1)), L::load(total_ + at + n * w));
    }
    exponentials<kRegisters>(factors, highest_ + at, ignored);
    for (int kb = 0; kb < factors.keys; ++kb)
      for (int n = 0; n < kRegisters; ++n) {
        T* const factor = factors.data + kb * factors.row + n * w;
        L::store(factor, mul(L::load(factor), part[n]));
      }
  }

  const Maps& maps_;
  const int dim_;
  T *exponentials_[2], *factors_[2];  // [keys][across], [blocks of keys][across]
  T* strips_;                         // queries times scale log2(e)
  T *highest_, *total_, *shrink_;     // [across]
  T* converted_[2];
  const T* keys_[2];  // [N_kv][D]
};

// body(block) for each block of queries in a share of a head's.
template <class T, class Body>
void each_block(const Maps& m, int64_t item, const Body& body) {
  const int64_t shares = head_shares(m), head = item / shares, share = item % shares, blocks = head_blocks(m);
  for (int64_t n = blocks * share / shares; n < blocks * (share + 1) / shares; ++n) {
    const int64_t first = n * block_queries(m);
    const int queries = static_cast<int>(std::min<int64_t>(block_queries(m), m.extent.queries - first));
    with_registers<T>(queries, [&](auto registers) {
      const int lanes = registers() * Lanes<T>::width;
      const int strips = (queries + lanes - 1) / lanes;
      body(registers, n,
           QueryBlock{head / m.extent.heads, head % m.extent.heads, first, queries, lanes, strips,
                      int64_t{strips} * lanes});
    });
  }
}

// The energies of the samples from those of their blocks of queries, in one order.
void store_energies(const Maps& m, const double* energies) {
  const int64_t blocks = m.extent.heads * head_blocks(m);
  for (int64_t b = 0; b < m.extent.samples; ++b)
    store_as<double>(m.energy.data, m.energy.dtype, b * m.energy.sample,
                     reduce::add_chunks(energies + b * blocks, blocks) / m.numel());
}

}  // namespace
}  // namespace fastdiff::attention
