// SPDX-License-Identifier: Apache-2.0
// What sparse_fill replaces, and how the elements are divided.
#pragma once

#include "core/lanes.h"
#include "quant/sparse_fill/sparse_fill.h"

namespace fastdiff::sparse_fill {
namespace {

inline constexpr int kChunk = 4096;  // elements in row-major order

FASTDIFF_HD constexpr int64_t chunks_of(const Params& p) {
  return (p.numel + kChunk - 1) / kChunk;
}

// The threshold rounded to the dtype of w, as `w.abs() < threshold` has it.
template <class T>
FASTDIFF_HD T threshold_of(const Params& p) {
  const double threshold = load_as<double>(p.threshold, p.threshold_dtype, 0);
  if (p.w.dtype == DType::f16) return static_cast<T>(widen(to_half(static_cast<float>(threshold))));
  if (p.w.dtype == DType::bf16) return static_cast<T>(widen(to_bfloat16(static_cast<float>(threshold))));
  return static_cast<T>(threshold);
}

// Not NaN.
template <class T>
FASTDIFF_HD bool is_replaced(T w, T threshold) {
  return abs_(w) < threshold;
}

}  // namespace
}  // namespace fastdiff::sparse_fill
