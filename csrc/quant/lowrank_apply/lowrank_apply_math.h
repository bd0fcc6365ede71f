// SPDX-License-Identifier: Apache-2.0
// What both backends of lowrank_apply agree on: the order of its sums, and where its numbers are.
//
// A sum over K or r is cut into chunks; the products of a chunk are one chain of fused multiply-adds from 0,
// and the chunks are added in their order to 0. So neither threads nor the width of registers change a bit.
#pragma once

#include "core/lanes.h"
#include "quant/lowrank_apply/lowrank_apply.h"

namespace fastdiff::lowrank_apply {
namespace {

inline constexpr int kChunk = 256;

// For so few rows it is the chunks of K that are shared among threads: their sums are stored and added later.
inline constexpr int64_t kFewRows = 64;

FASTDIFF_HD constexpr int64_t rounded_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}
FASTDIFF_HD constexpr int64_t chunks_of(int64_t steps) {
  return (steps + kChunk - 1) / kChunk;
}

// ---- the scratch memory: p [rows][padded rank], then one of these two -------------------------------

// The widest panel of columns in which the CPU takes a factor, and the most lanes of a register.
inline constexpr int kPanel = 64, kMostLanes = 16;

// Elements of a factor in panels.
FASTDIFF_HD constexpr int64_t panels_numel(int64_t steps, int64_t columns) {
  return rounded_up(steps, kMostLanes) * rounded_up(columns, kPanel);
}
FASTDIFF_HD constexpr int64_t p_numel(const Params& p) {
  return p.rows() * rounded_up(p.rank, kPanel);
}

// Factors are used where they lie, a block at a time: a copy of them is not worth its time, or its memory.
// The sums of chunks are stored, of at most kFewRows rows at a time.
FASTDIFF_HD constexpr bool is_streamed(const Params& p) {
  constexpr int64_t kMostCopied = int64_t{1} << 23;
  return p.rows() <= kFewRows || (p.inputs + p.outputs) * p.rank > kMostCopied;
}
FASTDIFF_HD constexpr int64_t sums_numel(const Params& p) {
  const int64_t rows = p.rows() < kFewRows ? p.rows() : kFewRows;
  return chunks_of(p.inputs) * rows * rounded_up(p.rank, kPanel);
}

// The first element of row m of sample b.
FASTDIFF_HD int64_t row_at(const Params& p, const Rows& rows, int64_t b, int64_t m) {
  int64_t at = b * rows.at.sample_stride;
  for (int d = 0; d < p.dims - 1; ++d, m /= p.size[d - 1]) at += m % p.size[d] * rows.at.stride[d];
  return at + m * rows.at.stride[p.dims - 1];
}

template <class T>
FASTDIFF_HD T number(const Numbers& numbers, int64_t b, int64_t n) {
  return load_as<T>(numbers.data, numbers.dtype, b * numbers.sample + n * numbers.element);
}

// p of one row and element of the rank, from its sum.
template <class T>
FASTDIFF_HD T gated(const Params& p, int64_t b, int64_t j, T sum) {
  if (p.offset.data != nullptr) sum = sum + number<T>(p.offset, b, j);
  return p.gates.data != nullptr ? number<T>(p.gates, b, j) * sum : sum;
}

}  // namespace
}  // namespace fastdiff::lowrank_apply
