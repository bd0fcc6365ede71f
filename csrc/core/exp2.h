// SPDX-License-Identifier: Apache-2.0
// Powers of two, for lanes of any kind.
#pragma once

#include "core/lanes.h"

namespace fastdiff {
namespace {

inline constexpr double kLog2E = 1.4426950408889634074;
inline constexpr double kLn2 = 0.69314718055994530942;

// 2^x for x <= 0: exact for integers, else with a relative error below 8e-8; 0 below 2^-126 and for -inf.
// NaN stays.
template <class V>
FASTDIFF_HD V exp2_(V x) {
  // The nearest integer, in the last bits of a sum whose unit is 1.
  const V magic = splat<V>(12582912.0f);
  const V bounded = at_least(splat<V>(-127.0f), x);
  const V shifted = add(bounded, magic);
  const V f = sub(bounded, sub(shifted, magic));  // in [-1/2, 1/2]
  // 2^f = sum of kExp2[n] f^n, relative error 2e-9 before rounding. In here, where device code may read it.
  constexpr float kExp2[] = {1.0f,           0.69314718246f, 0.24022647738f, 0.05550332367f,
                             0.00961843692f, 0.00133988750f, 0.00015353362f};
  V p = splat<V>(kExp2[6]);
  for (int n = 5; n >= 0; --n) p = fma_(p, f, splat<V>(kExp2[n]));
  const V y = as_float(add(as_bits(p), shift_left<23>(as_bits(shifted))));
  return unless_below(splat<V>(-126.0f), x, y);
}

}  // namespace
}  // namespace fastdiff
