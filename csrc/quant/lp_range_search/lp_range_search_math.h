// SPDX-License-Identifier: Apache-2.0
// The order of the sums of lp_range_search, the same on every backend, and its arithmetic.
//
//   chunk   kChunk elements of a row in row-major order, zeros after the last. Of every 64 of them element e
//   goes to
//           lane e % 16; a lane adds its four, (0 + 16) + (32 + 48), to its sum; at the end the lanes are
//           added in a tree (l and l + 8, l + 4, ...).
//   row     its chunks' sums in their order, in float64.
#pragma once

#include "core/lanes.h"
#include "quant/lp_range_search/lp_range_search.h"

namespace fastdiff::lp_range_search {
namespace {

inline constexpr int kLanes = 16, kTurn = 4 * kLanes, kChunk = 64 * kTurn;
inline constexpr int kRangeNumbers = 3;      // that the CPU keeps of a chunk
inline constexpr double kLeastScale = 1e-8;  // as the published code has it

FASTDIFF_HD constexpr int64_t chunks_of(const Params& p) {
  return (p.numel + kChunk - 1) / kChunk;
}

// Which signs x has decides where 0 lies among the levels.
enum Sign : int { kNegative = 1, kPositive = 2 };

struct Grid {
  int lowest, highest;  // multiples of the scale
  int zero_point;       // of signed levels: the lowest stored number is -(levels + 1)/2
  double unit;          // the scale of the first candidate
};

FASTDIFF_HD Grid grid_of(const Params& p, int signs, double peak) {
  const int half = (p.levels + 1) / 2;
  const double unit = peak / (static_cast<double>(p.levels) * p.candidates);
  if (!(signs & kNegative)) return {0, p.levels, -half, unit};
  if (!(signs & kPositive)) return {-p.levels, 0, p.levels - half, unit};
  return {-half, p.levels - half, 0, 2 * unit};
}

// No search where max |x| is not a number, or where the largest candidate is as small as a scale may be.
FASTDIFF_HD bool is_searched(const Params& p, const Grid& grid) {
  return grid.unit * p.candidates > kLeastScale && grid.unit - grid.unit == 0;
}

// The reciprocal of candidate c's scale, c from 0.
template <class T>
FASTDIFF_HD T inverse_of(const Grid& grid, int c) {
  return static_cast<T>(1 / (grid.unit * (c + 1)));
}

// |u|^p of u = s^(1/2): 2^(p/2 log2 s) with a relative error below 5e-7; 0 below 1e-30.
template <class V>
FASTDIFF_HD V power_of(const Params& p, V s) {
  using U = typename WordOf<V>::type;
  // s = 2^e (1 + f), f from sqrt(1/2) - 1 to sqrt(2) - 1; the words wrap around on purpose.
  const U bits = as_bits(s), biased = shift_right<23>(add(bits, splat<U>(0x3f800000u - 0x3f3504f3u)));
  const U e = sub(biased, splat<U>(127u));
  const V f = sub(as_float(sub(bits, shift_left<23>(e))), splat<V>(1.0f));
  V y = splat<V>(p.log_terms[kLogTerms - 1]);
  for (int n = kLogTerms - 2; n >= 0; --n) y = fma_(y, f, splat<V>(p.log_terms[n]));
  y = at_least(splat<V>(-126.0f), fma_(float_from_signed(e), splat<V>(p.half_power), y));
  const V magic = splat<V>(12582912.0f);  // the nearest integer, in the last bits of a sum whose unit is 1
  const V shifted = add(y, magic);
  const V g = sub(y, sub(shifted, magic));
  // 2^g on [-1/2, 1/2], relative error 7.5e-8. In here, where device code may read it.
  constexpr float kExp2[] = {1.0000001192f, 0.6931469440f, 0.2402212024f,
                             0.0555071309f, 0.0096755410f, 0.0013276472f};
  V power = splat<V>(kExp2[5]);
  for (int n = 4; n >= 0; --n) power = fma_(power, g, splat<V>(kExp2[n]));
  power = as_float(add(as_bits(power), shift_left<23>(as_bits(shifted))));
  return unless_below(splat<V>(1e-30f), s, power);
}
FASTDIFF_HD double power_of(const Params& p, double s) {
  return power_of(p, static_cast<float>(s));
}

// |x - quantised(x)|^p in units of the scale.
template <class V, class T>
FASTDIFF_HD V error_of(const Params& p, V x, V inverse, T lowest, T highest) {
  const V magic = splat<V>(sizeof(T) == sizeof(float) ? T(12582912) : T(6755399441055744));
  const V bounded = at_most(splat<V>(highest), at_least(splat<V>(lowest), mul(x, inverse)));
  const V u = fma_(x, inverse, sub(magic, add(bounded, magic)));
  return power_of(p, mul(u, u));
}

// Writes the results of a row from the sums of its candidates.
template <class Sum>
FASTDIFF_HD void choose(const Params& p, int64_t row, const Grid& grid, const Sum& sum) {
  double scale = grid.unit - grid.unit == 0 ? kLeastScale : grid.unit - grid.unit;
  if (is_searched(p, grid)) {
    int best = 0;
    double least = p.weight[0] * sum(0);
    for (int c = 1; c < p.candidates; ++c) {
      const double score = p.weight[c] * sum(c);
      if (score < least) best = c, least = score;
    }
    scale = at_least(kLeastScale, grid.unit * (best + 1));
  }
  p.scale[row * p.scale_stride] = static_cast<float>(scale);
  p.zero_point[row * p.zero_point_stride] = grid.zero_point;
}

}  // namespace
}  // namespace fastdiff::lp_range_search
