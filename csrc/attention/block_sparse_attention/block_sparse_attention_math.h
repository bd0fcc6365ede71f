// SPDX-License-Identifier: Apache-2.0
// What a thread of block_sparse_attention needs on the CPU, which the desk has to know too.
#pragma once

#include <cmath>

#include "attention/block_sparse_attention/block_sparse_attention.h"
#include "attention/rooms_cpu.h"

namespace fastdiff::block_sparse_attention {
namespace {

// Keys and values as the tiles of AMX take them, filled up with zeros: [keys][key_dim] and [dim][keys]. Those
// of the blocks seen last stay with the thread, for the next block of queries: as many as fit into the second
// level of the cache.
struct TileRoom {
  static constexpr int64_t kBytes = int64_t{1} << 20;
  int64_t keys, key_dim, dim, slots;

  explicit TileRoom(const Params& p)
      : keys(attention::rounded_up(p.plan.block_k, 32)),
        key_dim(attention::rounded_up(p.extent.head_dim, 32)),
        dim(attention::rounded_up(p.extent.head_dim, 16)),
        slots(kBytes / (2 * slot())) {
    if (slots > p.plan.key_blocks) slots = p.plan.key_blocks;
  }

  int64_t slot() const { return keys * (key_dim + dim); }  // in elements of bfloat16
  // In floats: the slots, which block each has, and rows that are being packed.
  int64_t numel() const {
    return slots * slot() / 2 + attention::rounded_up(2 * slots, 16) + keys * key_dim / 2;
  }
};

// Elements of one thread's memory: queries and sums of a block of queries, transposed and filled up to whole
// strips, and what earlier sets of keys have given; the scores of a strip, a block of keys and of values if
// they have to be converted, and the softmax's state.
struct Room {
  int64_t lanes, queries, scores, keys, bias, given;

  explicit Room(const Params& p)
      : lanes(attention::lanes_of(p.plan)),
        queries(lanes * (p.tiles ? TileRoom(p).dim : p.extent.head_dim)),
        scores(int64_t{p.plan.block_k} * attention::kMostLanes),
        keys(2 * int64_t{p.plan.block_k} * p.extent.head_dim),
        bias(attention::bias_numel(p.plan, p.bias)),
        given(p.plan.sets > 1 ? queries : 0) {
    // NOTE: enough for both, since somebody may choose another instruction set before the launch.
    if (p.tiles) keys = keys > TileRoom(p).numel() ? keys : TileRoom(p).numel();
  }

  int64_t numel() const {
    return attention::rounded_up(
        2 * queries + scores + keys + 2 * lanes + attention::kMostLanes + bias + given,
        attention::kMostWidth);
  }
};

// Rows of blocks of all heads.
inline int64_t rows_of_all(const Params& p) {
  return p.extent.samples * p.extent.heads * p.plan.rows;
}

inline int64_t parts_of(const Params& p, int threads) {
  const int64_t items = rows_of_all(p) * p.splits;
  return items < threads ? items : threads;
}

// ---- splits: the rows are too few for a machine, so each is worked on in several places ------------------
//
// A split gives what would be the whole if there were no other: out_i and lse_i. Then
//
//   lse = log sum_i exp(lse_i)          out = sum_i exp(lse_i - lse) out_i
//
// How many there are follows from sizes alone, so that results do not depend on the number of threads.

// Two blocks of threads for each multiprocessor of a large GPU; on a CPU, where a split costs a
// transposition more, a thread for each core of a usual socket.
inline constexpr int64_t kEnoughRowsCuda = 256, kEnoughRowsCpu = 32;
inline constexpr int64_t kLeastOfSplit = 4;  // blocks of keys, next to which the merge is nothing

inline int splits_of(const Params& p, Device device) {
  const int64_t rows = rows_of_all(p), lists = p.plan.rows * (p.plan.sample_stride ? p.extent.samples : 1) *
                                               (p.plan.head_stride ? p.extent.heads : 1);
  if (rows == 0 || p.plan.sets > 1) return 1;
  const int64_t enough = device.type == DeviceType::cuda ? kEnoughRowsCuda : kEnoughRowsCpu;
  const int64_t wanted = enough / rows, can = p.plan.entries / lists / kLeastOfSplit;
  return static_cast<int>(wanted < can ? (wanted > 1 ? wanted : 1) : (can > 1 ? can : 1));
}

// Elements of the splits' results: [splits][B, H, N_q][D + 1].
inline int64_t split_numel(const Params& p) {
  if (p.splits == 1) return 0;
  const int64_t rows = p.splits * p.extent.samples * p.extent.heads * p.extent.queries;
  return attention::rounded_up(rows * (p.extent.head_dim + 1), attention::kMostWidth);
}

// The launch with results that are splits', in `memory`.
inline Params with_results_in(const Params& p, void* memory) {
  if (p.splits == 1) return p;
  Params q = p;
  const DType dtype = p.wide() ? DType::f64 : DType::f32;
  const int64_t n = p.extent.queries, h = p.extent.heads, d = p.extent.head_dim;
  const int64_t rows = p.extent.samples * h * n;
  q.out = {memory, dtype, h * n * d, n * d, d, 1, n};
  q.out_of_split = rows * d;
  const int64_t bytes = p.splits * rows * d * static_cast<int64_t>(size_of(dtype));
  q.lse = {static_cast<char*>(memory) + bytes, dtype, h * n, n, 1, 0};
  q.lse_of_part = rows;
  return q;
}

// Where the split-th part of `count` entries begins.
FASTDIFF_HD constexpr int begin_of_split(int count, int split, int splits) {
  return static_cast<int>(int64_t{count} * split / splits);
}

// What a query's splits are times in the whole; its log-sum-exp.
template <class T>
struct Merge {
  const T* lse;  // of split 0
  int64_t step;  // to the next split
  int splits;
  double highest, total;

  FASTDIFF_HD Merge(const T* lse_, int64_t step_, int splits_)
      : lse(lse_), step(step_), splits(splits_), highest(-INFINITY), total(0) {
    for (int i = 0; i < splits; ++i) {
      const double x = lse[i * step];
      highest = x > highest ? x : highest;
    }
    if (highest == -static_cast<double>(INFINITY)) highest = 0;  // nothing is seen, or all is NaN
    for (int i = 0; i < splits; ++i) total = total + exp(lse[i * step] - highest);
  }
  FASTDIFF_HD double whole() const {
    return total == 0 ? -static_cast<double>(INFINITY) : highest + log(total);
  }
  FASTDIFF_HD T weight(int split) const {
    return total == 0 ? T(0) : static_cast<T>(exp(lse[split * step] - highest) / total);
  }
};

}  // namespace
}  // namespace fastdiff::block_sparse_attention
