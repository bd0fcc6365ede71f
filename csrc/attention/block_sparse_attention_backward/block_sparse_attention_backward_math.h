// SPDX-License-Identifier: Apache-2.0
// What a thread of block_sparse_attention_backward needs on the CPU, which the desk has to know too.
#pragma once

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward.h"
#include "attention/rooms_cpu.h"

namespace fastdiff::block_sparse_attention_backward {
namespace {

// Elements of one thread's memory. Of a block of queries: queries, dout and dq transposed in strips, queries
// and dout in rows of whole registers, and two numbers for each. Of a block of keys: p and ds, and keys and
// values if they have to be converted. Of a head of keys: dk, dv and dbias.
struct Room {
  int64_t lanes, strips, wide_dim, rows, block, converted, bias, sums, bias_sums;

  explicit Room(const Params& p)
      : lanes(attention::lanes_of(p.plan)),
        strips(lanes * p.extent.head_dim),
        wide_dim(attention::rounded_up(p.extent.head_dim, attention::kMostWidth)),
        rows(lanes * wide_dim),
        block(p.plan.block_k * lanes),
        converted(int64_t{p.plan.block_k} * p.extent.head_dim),
        bias(attention::bias_numel(p.plan, p.bias)),
        sums(p.extent.keys * wide_dim),
        bias_sums(attention::rounded_up(dbias_numel(p), attention::kMostWidth)) {}

  // Of a head.
  static int64_t dbias_numel(const Params& p) {
    if (p.dtable.data != nullptr) return p.bias.entries;
    return p.dbias.data != nullptr ? p.extent.keys : 0;
  }

  int64_t numel() const {
    return 3 * strips + 2 * rows + 2 * lanes + 2 * block + 2 * converted + bias + 2 * sums + bias_sums;
  }
};

// Tables of a head that launch_cuda sums to its gradient: one for each warp, so that no two add to the same
// place.
inline constexpr int kTablesOfHead = 8;

inline int64_t parts_of(const Params& p, int threads) {
  const int64_t items = p.extent.samples * p.extent.kv_heads;
  return items < threads ? items : threads;
}

}  // namespace
}  // namespace fastdiff::block_sparse_attention_backward
