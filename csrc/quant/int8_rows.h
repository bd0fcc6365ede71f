// SPDX-License-Identifier: Apache-2.0
// How a row of activations becomes int8, in float32, for lanes of any kind.
//
//   signed, 8 bits   scale = max |x| / 127, zero point 0, q in [-127, 127]
//   7 bits           scale = (max(x, 0) - min(x, 0)) / 127, zero point -min(x, 0) / scale, q in [0, 127]
//
// q = clamp(round(x inverse) + zero point), to nearest even, with the inverse of the scale: a division for
// each element would take longer than to read it. A row with NaN, or an infinite range, has the scale NaN and
// q = zero point.
#pragma once

#include "core/lanes.h"
#include "quant/rows.h"

namespace fastdiff::quant {

struct RowScale {
  float scale, inverse;
  int32_t zero_point;
  float lowest, highest;  // of q - zero point
};

namespace {

// Added to a float below 2^22, it leaves the nearest integer in the last bits.
inline constexpr float kRoundingUnit = 12582912.0f;
// No scale is so small that its inverse overflows.
inline constexpr float kSmallestRange = 7.8886091e-31f;  // 2^-100
inline constexpr float kLevels = 127.0f;

// By the least and the greatest of a row and 0.
FASTDIFF_HD RowScale dynamic_scale(float least, float greatest, bool is_signed) {
  const float width = is_signed ? (greatest > -least ? greatest : -least) : greatest - least;
  const float range = width < kSmallestRange ? kSmallestRange : width;
  const float inverse = kLevels / range;
  if (is_signed) return {range / kLevels, inverse, 0, -kLevels, kLevels};
  const float zero = (-least * inverse + kRoundingUnit) - kRoundingUnit;
  const float finite = zero >= 0.0f ? zero : 0.0f;  // NaN for an infinite range
  return {range / kLevels, inverse, static_cast<int32_t>(finite), -finite, kLevels - finite};
}

// By a scale that is given, with q in [-128, 127] if there is a zero point.
FASTDIFF_HD RowScale static_scale(float scale, int32_t zero_point, bool is_affine, bool is_signed) {
  const float zero = static_cast<float>(zero_point);
  const float lowest = !is_signed ? 0.0f : is_affine ? -128.0f : -kLevels;
  return {scale, 1.0f / scale, zero_point, lowest - zero, kLevels - zero};
}

// By what a caller gives for row m, or for all: float32 and, or none, int32.
FASTDIFF_HD RowScale given_scale(const Vectors& scale, const Vectors& zero_point, int64_t m, bool is_signed) {
  const float s = static_cast<const float*>(scale.data)[m * scale.element];
  const bool is_affine = zero_point.data != nullptr;
  const int32_t zero = is_affine ? static_cast<const int32_t*>(zero_point.data)[m * zero_point.element] : 0;
  return static_scale(s, zero, is_affine, is_signed);
}

// clamp(x inverse) to the least and greatest q - zero point, which are integers; NaN stays.
template <class V>
FASTDIFF_HD V scaled(V x, const RowScale& s) {
  return at_most(splat<V>(s.highest), at_least(splat<V>(s.lowest), mul(x, splat<V>(s.inverse))));
}

// The nearest integer of a number below 2^22, as bits of which kRoundingUnit's are to be subtracted.
template <class V>
FASTDIFF_HD auto rounded_bits(V scaled) {
  return as_bits(add(scaled, splat<V>(kRoundingUnit)));
}

// A sum less what the zero points ask for. row: sum_k q - K zx. It may wrap on the way; the result does not.
FASTDIFF_HD int32_t without_zero_points(int32_t sum, int32_t zero_of_row, int32_t column_sum, uint32_t row,
                                        int32_t zero_of_column) {
  return static_cast<int32_t>(static_cast<uint32_t>(sum) -
                              static_cast<uint32_t>(zero_of_row) * static_cast<uint32_t>(column_sum) -
                              row * static_cast<uint32_t>(zero_of_column));
}

}  // namespace
}  // namespace fastdiff::quant
