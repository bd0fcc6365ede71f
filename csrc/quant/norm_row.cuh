// SPDX-License-Identifier: Apache-2.0
// norm_row.h on CUDA: a warp takes a row, four consecutive elements a lane and turn, and holds it in
// registers if it fits into kTurns turns. Longer rows are read again for each pass, then from the caches.
#pragma once

#include "core/walk.cuh"
#include "quant/norm_row_math.h"
#include "quant/rounding.h"

namespace fastdiff::quant {
namespace {

inline constexpr int kWarp = 32;
inline constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;
inline constexpr int kRowBlocks = 4;  // of a multiprocessor: 128 registers a thread
inline constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kSumLanes == kWarp * kQuad, "a warp's turn is one element for each lane of a sum");

// Which tensors have their rows' elements side by side and aligned, so that four are one access.
struct RowQuads {
  bool x = false, weight = false, bias = false, scale_by = false, shift = false, result = false;
};

// `bytes`: of an access.
inline bool has_row_quads(const NormedRows& rows, const RowTensor& t, int bytes) {
  if (t.data == nullptr || t.dtype == DType::f64 || t.column != 1 ||
      reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) != 0)
    return false;
  for (int d = 0; d < rows.dims; ++d)
    if (rows.size[d] != 1 && t.stride[d] % kQuad != 0) return false;
  return true;
}

inline RowQuads row_quads(const NormedRows& rows, const RowTensor& result) {
  const auto has = [&](const RowTensor& t) { return has_row_quads(rows, t, kQuad * size_of(t.dtype)); };
  return {has(rows.x), has(rows.weight), has(rows.bias), has(rows.scale_by), has(rows.shift), has(result)};
}

// Elements first ... first + count - 1 of a row that begins at `at`; count is at most kQuad.
__device__ __forceinline__ void load_four(const RowTensor& t, bool quads, int64_t at, int64_t first,
                                          int count, float (&v)[kQuad]) {
  if (quads && count == kQuad) return load_quad(t.data, t.dtype, at + first, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) v[j] = load_as<float>(t.data, t.dtype, at + (first + j) * t.column);
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = x + __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

__device__ __forceinline__ uint32_t warp_largest(uint32_t x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// All lanes of a warp call every function together. kTurns = 0: the row is not held.
template <int kTurns>
class WarpRow {
 public:
  __device__ WarpRow(const NormedRows& rows, const RowQuads& quads, int64_t row)
      : rows_(rows), quads_(quads), x_at_(rows.at(rows.x, row)) {
    if (rows.scale_by.data != nullptr) scale_at_ = rows.at(rows.scale_by, row);
    if (rows.shift.data != nullptr) shift_at_ = rows.at(rows.shift, row);
    each_turn([&](int turn, int64_t first, int count) {
      if constexpr (kTurns > 0) load_four(rows_.x, quads_.x, x_at_, first, count, held_[turn]);
    });
    if (rows.norm != Norm::none) measure();
    if constexpr (kTurns > 0)
      each_turn([&](int turn, int64_t first, int count) { change(first, count, held_[turn]); });
  }

  // body(y, first, count) for each four elements of this lane, of which the last may be fewer.
  template <class Body>
  __device__ void each(const Body& body) {
    each_turn([&](int turn, int64_t first, int count) {
      if constexpr (kTurns > 0) {
        body(held_[turn], first, count);
      } else {
        float y[kQuad];
        load_four(rows_.x, quads_.x, x_at_, first, count, y);
        change(first, count, y);
        body(y, first, count);
      }
    });
  }

 private:
  template <class Body>
  __device__ __forceinline__ void each_turn(const Body& body) {
    const int64_t own = threadIdx.x % kWarp * kQuad;
    if constexpr (kTurns > 0) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int64_t first = own + turn * kSumLanes;
        if (first < rows_.columns) body(turn, first, count_from(first));
      }
    } else {
      for (int64_t first = own; first < rows_.columns; first += kSumLanes) body(0, first, count_from(first));
    }
  }

  __device__ int count_from(int64_t first) const {
    return rows_.columns - first < kQuad ? static_cast<int>(rows_.columns - first) : kQuad;
  }

  // The sum of term(sum, x) in the order of norm_row.h, in every lane.
  template <class Term>
  __device__ float sum(const Term& term) {
    float lane[kQuad] = {};
    each_turn([&](int turn, int64_t first, int count) {
      float x[kQuad];
      if constexpr (kTurns > 0) {
        for (int j = 0; j < kQuad; ++j) x[j] = held_[turn][j];
      } else {
        load_four(rows_.x, quads_.x, x_at_, first, count, x);
      }
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (j < count) lane[j] = term(lane[j], x[j]);
    });
    for (int j = 0; j < kQuad; ++j) lane[j] = warp_sum(lane[j]);
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
  }

  __device__ void measure() {
    const float columns = static_cast<float>(rows_.columns);
    if (rows_.norm == Norm::layer)
      statistics_.mean = div(sum([](float s, float x) { return s + x; }), columns);
    const float mean = statistics_.mean;
    const float squares = sum([mean](float s, float x) { return square_of_difference(x, mean, s); });
    statistics_.rstd = rstd_of(squares, rows_.columns, rows_.eps);
  }

  __device__ __forceinline__ void change(int64_t first, int count, float (&y)[kQuad]) const {
    if (rows_.is_plain()) return;
    const Changes changes = changes_of(rows_);
    float weight[kQuad], bias[kQuad], scale[kQuad], shift[kQuad];
    const auto load = [&](const RowTensor& t, bool quads, int64_t at, float (&v)[kQuad]) {
      if (t.data != nullptr) load_four(t, quads, at, first, count, v);
    };
    load(rows_.weight, quads_.weight, 0, weight);
    load(rows_.bias, quads_.bias, 0, bias);
    load(rows_.scale_by, quads_.scale_by, scale_at_, scale);
    load(rows_.shift, quads_.shift, shift_at_, shift);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (j < count)
        y[j] = modulated<float>(
            changes, statistics_.mean, statistics_.rstd, y[j], [&] { return weight[j]; },
            [&] { return bias[j]; }, [&] { return scale[j]; }, [&] { return shift[j]; });
  }

  const NormedRows& rows_;
  const RowQuads& quads_;
  int64_t x_at_, scale_at_ = 0, shift_at_ = 0;
  Statistics statistics_;
  float held_[kTurns > 0 ? kTurns : 1][kQuad];
};

// q[first ...] = round(y), four of them in one access.
__device__ __forceinline__ void store_four(const RowTensor& q, bool quads, int64_t at, int64_t first,
                                           int count, const float (&y)[kQuad]) {
  int8_t* const to = static_cast<int8_t*>(q.data) + at + first * q.column;
  if (quads && count == kQuad) {
    *reinterpret_cast<uint32_t*>(to) = packed_int8(y);
    return;
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) to[j * q.column] = to_int8(y[j]);
}

// body(std::integral_constant<int, kTurns>) with the least kTurns that hold a row.
template <class Body>
void with_turns(const NormedRows& rows, const Body& body) {
  const int64_t turns = (rows.columns + kSumLanes - 1) / kSumLanes;
  if (turns <= 4) {
    body(std::integral_constant<int, 4>{});
  } else if (turns <= 10) {
    body(std::integral_constant<int, 10>{});
  } else if (turns <= 16) {
    body(std::integral_constant<int, 16>{});
  } else {
    body(std::integral_constant<int, 0>{});
  }
}

}  // namespace
}  // namespace fastdiff::quant
