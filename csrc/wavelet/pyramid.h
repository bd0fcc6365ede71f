// SPDX-License-Identifier: Apache-2.0
// The Laplacian pyramid: its stencils, and how its levels lie in memory.
//
// A level halves an image of n rows (columns) to c = ceil(n / 2) of them and back, each dimension by itself.
// Both directions are a binomial blur (1, 4, 6, 4, 1) / 16 and a bilinear resize by two, composed:
//
//   down   coarse[j] = sum_k (1, 5, 10, 10, 5, 1)[k] / 32 fine[2 j - 2 + k]
//   up     fine[2 i] = sum_k (1, 21, 35, 7)[k] / 64 coarse[i - 2 + k]
//          fine[2 i + 1] = sum_k (7, 35, 21, 1)[k] / 64 coarse[i - 1 + k]
//
// Beyond the ends lies what the blur has there, a reflection (c b | a b c): `extended` for down. In up the
// reflection is of the resized image, not of the coarse one, which changes the weights of the three rows next
// to an end: `up_weights`. An odd n is the even n + 1 whose last row is a reflection too, and is not kept.
//
// The order, on every backend: down mixes rows, then columns; up mixes columns, then rows; taps in increasing
// order, one fma each. A weight of 0 is no tap.
#pragma once

#include <cstdint>
#include <span>

#include "core/lanes.h"
#include "core/view.h"
#include "core/walk.h"

namespace fastdiff::pyramid {

inline constexpr int kMaxLevels = 32;                  // bands: the longest side is 1 long before
inline constexpr int64_t kMaxSide = int64_t{1} << 30;  // rows, columns: their number, doubled, is an int
inline constexpr int kDownTaps = 6;
inline constexpr int kUpTaps = 4;
inline constexpr int kUpReach = 2;  // coarse rows to either side of its own that a fine row is made of
inline constexpr int kUpEnd = 3;    // fine rows at either end with weights of their own

// [*planes, rows, columns]; strides in elements.
struct Image {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t row = 0, column = 0;
  int64_t plane[kMaxDims] = {};  // innermost first
};

// whole = detail + up(coarse), coarse = down(whole)
struct Level {
  int64_t height = 0, width = 0;  // of whole and detail; ceil of half of them of coarse
  int dims = 0;
  int64_t size[kMaxDims] = {};  // of the planes, innermost first
  Image whole, detail, coarse;
};

struct Pyramid {
  int levels = 0;             // one less than there are bands
  int64_t planes = 0;         // images in each
  bool wide = false;          // the arithmetic is float64
  int64_t scratch_bytes = 0;  // for what lies between two levels, in the type of the arithmetic
  Level level[kMaxLevels - 1];

  bool is_empty() const { return planes * level[0].height * level[0].width == 0; }
  int64_t numel() const { return planes * level[0].height * level[0].width; }
  // Once there is memory, aligned to 8 bytes.
  void put_between(void* scratch);
};

// bands: the finest first, of the sizes that they must have. Throws Refusal, in the name of op, on layouts
// that no kernel has.
Pyramid lay_out(const char* op, const TensorView& whole, std::span<const TensorView> bands);

namespace {

template <class N>
FASTDIFF_HD N coarse_size(N fine) {
  return fine - fine / 2;
}

// The row of n that stands at k, for -2 <= k < 2 coarse_size(n) + 2.
template <class N>
FASTDIFF_HD N extended(N k, N n) {
  const N last = 2 * coarse_size(n) - 1;
  N i = k < 0 ? -k : k;
  if (i > last) i = 2 * last - i;
  if (i < 0) i = -i;  // of two rows, a reflection goes beyond the other end
  if (i < n) return i;
  return n > 1 ? n - 2 : 0;
}

// k: 0 ... kDownTaps - 1.
template <class T>
FASTDIFF_HD T down_weight(int k) {
  const int near = k < 3 ? k : 5 - k;
  return static_cast<T>(near == 0 ? 1 : near == 1 ? 5 : 10) / T(32);
}

// The coarse row of a fine row's tap 0.
template <class N>
FASTDIFF_HD N up_first(N fine) {
  return fine / 2 - 2 + fine % 2;
}

// Of a fine row, as if there were no ends.
template <class T>
FASTDIFF_HD T up_weight(bool odd, int k) {
  const int at = odd ? 3 - k : k;
  return static_cast<T>(at == 0 ? 1 : at == 1 ? 21 : at == 2 ? 35 : 7) / T(64);
}

template <class T>
struct UpWeights {
  T weight[kUpTaps];
};

// Of any fine row; rows that do not exist have weight 0.
template <class T, class N>
FASTDIFF_HD UpWeights<T> up_weights(N fine, N coarse) {
  UpWeights<T> w;
  const N last = 2 * coarse - 1, first = up_first(fine);
  if (fine >= kUpEnd && fine <= last - kUpEnd) {
    for (int k = 0; k < kUpTaps; ++k) w.weight[k] = up_weight<T>(fine % 2 == 1, k);
    return w;
  }
  int parts[kUpTaps] = {};  // of 64
  for (int k = -2; k <= 2; ++k) {
    const int blur = k == 0 ? 6 : k * k == 1 ? 4 : 1;
    N resized = fine + k < 0 ? -(fine + k) : fine + k;
    if (resized > last) resized = 2 * last - resized;
    if (resized < 0) resized = -resized;
    const N own = resized / 2;
    N other = resized % 2 == 1 ? own + 1 : own - 1;
    if (other < 0) other = 0;
    if (other >= coarse) other = coarse - 1;
    for (int tap = 0; tap < kUpTaps; ++tap) {
      if (first + tap == own) parts[tap] += 3 * blur;
      if (first + tap == other) parts[tap] += blur;
    }
  }
  for (int k = 0; k < kUpTaps; ++k) w.weight[k] = static_cast<T>(parts[k]) / T(64);
  return w;
}

// sum_k weight(k) x(k) over taps 0 ... kTaps - 1; V: the lanes of one or of several elements.
template <int kTaps, class V, class Weight, class Tap>
FASTDIFF_HD V sum_of_taps(const Weight& weight, const Tap& x) {
  V sum = mul(weight(0), x(0));
  for (int k = 1; k < kTaps; ++k) sum = fma_(weight(k), x(k), sum);
  return sum;
}

// The same without the taps of weight 0, for one element.
template <class T, class Tap>
FASTDIFF_HD T sum_of_present(const UpWeights<T>& w, const Tap& x) {
  T sum = 0;
  bool begun = false;
  for (int k = 0; k < kUpTaps; ++k) {
    if (w.weight[k] == T(0)) continue;
    sum = begun ? fma_(w.weight[k], x(k), sum) : mul(w.weight[k], x(k));
    begun = true;
  }
  return sum;
}

}  // namespace
}  // namespace fastdiff::pyramid
