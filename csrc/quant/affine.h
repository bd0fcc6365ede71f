// SPDX-License-Identifier: Apache-2.0
// Elements on a grid: q = clamp(round(x / scale) + zero_point, low, high), and x back from it. The rooms that
// do this element by element share how scales and zero points reach an element, and the loops.
//
// A scale is one number, what broadcasts to x, or row `step` of a table [T]: one step for all, or one for
// each sample (entry of the first dimension). The step is a tensor, so that a new one neither recompiles nor
// synchronises.
#pragma once

#include <cstdint>
#include <optional>

#include "core/space.h"

namespace fastdiff::quant {

struct AffineArguments {
  TensorView scale;                      // float
  std::optional<TensorView> zero_point;  // int32, like the scale or one number
  std::optional<TensorView> step;        // int64, one number or [B]: scale and zero_point are tables [T]
};

struct Affine {
  Operand scale, zero;                  // zero: no data: 0
  const int64_t* step = nullptr;        // null: there is no table
  int64_t step_stride = 0;              // 0: the same for all samples
  int64_t steps = 1;                    // T
  int64_t scale_row = 0, zero_row = 0;  // strides of the tables
  float low = 0, high = 0;

  FASTDIFF_HD int64_t step_of(int64_t sample) const {
    return step == nullptr ? 0 : step[sample * step_stride];
  }
  FASTDIFF_HD int32_t zero_at(int64_t i) const {
    return zero.data == nullptr ? 0 : static_cast<const int32_t*>(zero.data)[i];
  }
};

// x and what becomes of it, in the order that y has in memory.
struct Elements {
  Operand x, gradient, y;  // gradient: no data: none
  Affine affine;
  int dims = 1;
  int64_t size[kMaxDims] = {};     // innermost first
  int64_t samples = 1, numel = 0;  // of one sample; samples are apart only where their steps are
  bool wide = false;               // arithmetic in float64
  bool stream = false;  // more bytes than the last-level cache holds: write new lines past the caches

  constexpr int64_t total() const { return samples * numel; }
};

inline constexpr int64_t kSerialElements = 32768;  // fewer are left to one thread

// ---- the desk's part: affine_desk.cpp ---------------------------------------------------------------

enum class Scales { one, broadcast };

// Throws Refusal; on the CPU also where a step is not in the table.
void check_affine(const char* op, const AffineArguments& affine, const TensorView& x, Scales scales);

// low < high, within these. Throws Refusal.
void check_range(const char* op, int64_t low, int64_t high, int64_t least, int64_t most);

// Its results share no memory with any of them. Throws Refusal.
void check_apart_from_affine(const char* op, const TensorView& result, const AffineArguments& affine);

Elements elements_of(const char* op, const TensorView& x, const AffineArguments& affine, const TensorView& y,
                     const std::optional<TensorView>& gradient = std::nullopt);

}  // namespace fastdiff::quant
