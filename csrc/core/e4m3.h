// SPDX-License-Identifier: Apache-2.0
// e4m3, the float of 8 bits: a sign, 4 bits of exponent, 3 of mantissa, no infinity; 0x7f and 0xff are NaN,
// the largest number is 448 and the least 2^-9. For lanes of any kind; nothing here makes or takes a NaN's
// byte.
#pragma once

#include "core/lanes.h"

namespace fastdiff {
namespace {

inline constexpr float kLargestE4m3 = 448.0f;
inline constexpr float kLeastNormalE4m3 = 0x1p-6f;
// By so much a float is less in whose exponent and mantissa e4m3's have been put: exponents count from -127
// there and from -7 here. The product is exact, and makes subnormal numbers normal.
inline constexpr float kE4m3Bias = 0x1p120f;

// Byte N of each word.
template <int N, class U>
FASTDIFF_HD auto e4m3_of_byte(U words) {
  using V = decltype(as_float(words));
  const U top = shift_left<24 - 8 * N>(words);
  const U bits = xor_(and_(top, splat<U>(0x80000000u)), and_(shift_right<4>(top), splat<U>(0x07f00000u)));
  return mul(as_float(bits), splat<V>(kE4m3Bias));
}

// The nearest number that e4m3 holds, ties to even, as a float; beyond 448 it is 448. NaN stays.
template <class V>
FASTDIFF_HD V nearest_e4m3(V x) {
  using U = decltype(as_bits(x));
  const V magnitude = at_most(splat<V>(kLargestE4m3), as_float(and_(as_bits(x), splat<U>(0x7fffffffu))));
  const V power = as_float(and_(as_bits(magnitude), splat<U>(0x7f800000u)));
  // Floats of its size are so far apart as numbers of e4m3 of the size of x.
  const V unit = mul(at_least(splat<V>(kLeastNormalE4m3), power), splat<V>(0x1p20f));
  const V nearest = sub(add(magnitude, unit), unit);
  return as_float(xor_(as_bits(nearest), and_(as_bits(x), splat<U>(0x80000000u))));
}

// Of a number that e4m3 holds.
FASTDIFF_HD uint8_t byte_of_e4m3(float x) {
  const uint32_t bits = as_bits(mul(x, 1.0f / kE4m3Bias));
  return static_cast<uint8_t>((bits >> 24 & 0x80u) | (bits >> 20 & 0x7fu));
}

inline constexpr uint8_t kNanE4m3 = 0x7f;  // and with the sign

}  // namespace
}  // namespace fastdiff
