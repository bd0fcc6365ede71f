// SPDX-License-Identifier: Apache-2.0
// What a thread of block_sparse_attention needs on the CPU, which the desk has to know too.
#pragma once

#include "attention/block_sparse_attention/block_sparse_attention.h"
#include "attention/rooms_cpu.h"

namespace fastdiff::block_sparse_attention {
namespace {

// Elements of one thread's memory: queries and sums of a block of queries, transposed and filled up to whole
// strips, the scores of a strip, a block of keys and of values if they have to be converted, and the
// softmax's state.
struct Room {
  int64_t lanes, queries, scores, keys, bias;

  explicit Room(const Params& p)
      : lanes(attention::lanes_of(p.plan)),
        queries(lanes * p.extent.head_dim),
        scores(int64_t{p.plan.block_k} * attention::kMostLanes),
        keys(int64_t{p.plan.block_k} * p.extent.head_dim),
        bias(attention::bias_numel(p.plan, p.bias)) {}

  int64_t numel() const {
    return attention::rounded_up(2 * queries + scores + 2 * keys + 2 * lanes + attention::kMostLanes + bias,
                                 attention::kMostWidth);
  }
};

inline int64_t parts_of(const Params& p, int threads) {
  const int64_t items = p.extent.samples * p.extent.heads * p.plan.rows;
  return items < threads ? items : threads;
}

}  // namespace
}  // namespace fastdiff::block_sparse_attention
