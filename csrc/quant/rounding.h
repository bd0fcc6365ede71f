// SPDX-License-Identifier: Apache-2.0
// How numbers become int8, for lanes of any kind. Everything is float32 (float64 where the caller computes in
// it), and every operation is rounded once: the same bits on every backend.
#pragma once

#include "core/lanes_int8.h"

namespace fastdiff::quant {
namespace {

inline constexpr float kLargest = 127.0f;
inline constexpr float kLeastMagnitude =
    0x1p-100f;  // of a row: its scale and the reciprocal stay normal numbers
inline constexpr uint32_t kInfinity = 0x7f800000u;

// The magnitude of x as a word. Words of numbers are ordered like them, and that of infinity and NaN is
// larger.
template <class V>
FASTDIFF_HD auto magnitude_of(V x) {
  using U = typename WordOf<V>::type;
  return and_(as_bits(x), splat<U>(uint32_t{0x7fffffff}));
}

// Of a row, symmetric: q = round(x * inverse), x is about q * scale.
struct SymmetricScale {
  float scale, inverse;
  bool is_number;  // false: something in the row is not a finite number, scale is NaN and every q is 0
};

// `magnitude`: the largest word of the row.
FASTDIFF_HD SymmetricScale scale_of(uint32_t magnitude) {
  if (magnitude >= kInfinity) return {bits_as<float>(0x7fc00000u), 0.0f, false};
  const float amax = at_least(kLeastMagnitude, as_float(magnitude));
  return {div(amax, kLargest), div(kLargest, amax), true};
}

// Whole numbers of a scale on a grid from low to high; NaN stays.
template <class V>
FASTDIFF_HD V on_grid(V x, V inverse, V zero) {
  return add(round_(mul(x, inverse)), zero);
}
template <class V>
FASTDIFF_HD V within(V low, V high, V q) {
  return at_most(high, at_least(low, q));
}

// Four of them in a word, in their order in memory.
FASTDIFF_HD uint32_t packed_int8(const float (&q)[4]) {
  uint32_t word = 0;
  for (int j = 0; j < 4; ++j) word |= static_cast<uint32_t>(static_cast<uint8_t>(to_int8(q[j]))) << (8 * j);
  return word;
}

}  // namespace
}  // namespace fastdiff::quant
