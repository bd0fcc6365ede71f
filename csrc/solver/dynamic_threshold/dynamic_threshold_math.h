// SPDX-License-Identifier: Apache-2.0
// The formula of dynamic_threshold and the arithmetic of its search; shared by the CPU loop and the CUDA
// kernels.
#pragma once

#include "core/lanes.h"
#include "solver/dynamic_threshold/dynamic_threshold.h"

namespace fastdiff::dynamic_threshold {
namespace {

// ---- keys -----------------------------------------------------------------------------------------

inline constexpr int kBins = 2048;

// A magnitude's bits without the sign: an integer with the same order, NaN above infinity.
template <class T>
struct Magnitude;

template <>
struct Magnitude<float> {
  using Key = uint32_t;
  static constexpr Key kMask = 0x7fffffffu, kInfinity = 0x7f800000u;
  static constexpr int kDigits = 3;
  // The lowest bit of each digit, from the highest digit on; none is wider than kBins can count.
  FASTDIFF_HD static constexpr int shift(int digit) { return 20 - 10 * digit; }
};

template <>
struct Magnitude<double> {
  using Key = uint64_t;
  static constexpr Key kMask = 0x7fffffffffffffffu, kInfinity = 0x7ff0000000000000u;
  static constexpr int kDigits = 6;
  FASTDIFF_HD static constexpr int shift(int digit) { return digit < 3 ? 52 - 11 * digit : 50 - 10 * digit; }
};

template <class T>
FASTDIFF_HD typename Magnitude<T>::Key key_of(T x) {
  return bits_as<typename Magnitude<T>::Key>(x) & Magnitude<T>::kMask;
}

// The digits that can differ: 16-bit floats have no bits in the last one.
template <class T>
FASTDIFF_HD int digits_of(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16 ? Magnitude<T>::kDigits - 1 : Magnitude<T>::kDigits;
}

// The `rank`-th smallest (from 0) of the keys that begin with the digits in `prefix`.
template <class T>
struct Search {
  using Key = typename Magnitude<T>::Key;
  Key prefix = 0;
  int64_t rank = 0;

  // A key without the digits that are still to be found, `digit` the first of them.
  FASTDIFF_HD static Key head(Key key, int digit) {
    return digit == 0 ? Key(0) : key >> Magnitude<T>::shift(digit - 1);
  }
  FASTDIFF_HD static int bin(Key key, int digit) {
    return static_cast<int>(key >> Magnitude<T>::shift(digit)) & (kBins - 1) & mask(digit);
  }
  FASTDIFF_HD void found(int digit, int bin, int64_t keys_before) {
    prefix |= static_cast<Key>(bin) << Magnitude<T>::shift(digit);
    rank -= keys_before;
  }

 private:
  FASTDIFF_HD static int mask(int digit) {
    return digit == 0 ? kBins - 1 : (1 << (Magnitude<T>::shift(digit - 1) - Magnitude<T>::shift(digit))) - 1;
  }
};

// ---- a search on the CPU --------------------------------------------------------------------------

inline constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread

// What the keys of a part of a sample say about one digit.
template <class T>
struct Tally {
  using Key = typename Magnitude<T>::Key;
  int64_t count[kBins] = {};  // of the keys that begin with the digits found before, by this digit
  Key above = ~Key(0);        // the least key beyond all of those
  bool has_nan = false;

  void add(const Tally& other) {
    for (int b = 0; b < kBins; ++b) count[b] += other.count[b];
    if (other.above < above) above = other.above;
    has_nan |= other.has_nan;
  }
};

// ---- a search in device memory ----------------------------------------------------------------------

inline constexpr int64_t kOneBlockNumel = 16 * 1024;  // elements of a sample that one block takes on alone

using Count = unsigned long long;  // as CUDA's atomics have it

// What all blocks have found in a sample; all zero at first.
template <class T>
struct Found {
  Count count[Magnitude<T>::kDigits][kBins];
  Count above;  // ~ of the least key beyond the bins of the last digit: 0 means none
  Count has_nan;
};

// ---- the quantile ---------------------------------------------------------------------------------

// Where the quantile lies: between the order statistics floor(p (n - 1)) and the next one.
struct Position {
  int64_t below;
  double weight;  // of the next one; 0: it is not needed
};

FASTDIFF_HD Position position(double ratio, int64_t numel) {
  const double rank = ratio * static_cast<double>(numel - 1);
  const auto below = static_cast<int64_t>(rank);
  return {below, rank - static_cast<double>(below)};
}

// As torch.lerp: from the nearer end, so that equal ends give that value. inf - inf is NaN, as there.
FASTDIFF_HD double lerp(double a, double b, double weight) {
  const double difference = b - a;
  return weight < 0.5 ? fma_(weight, difference, a) : fma_(weight - 1.0, difference, b);
}

// s of the order statistics at a position, NaN if there is one in the sample.
template <class T>
FASTDIFF_HD double threshold(const Params& p, typename Magnitude<T>::Key below,
                             typename Magnitude<T>::Key above, bool has_nan) {
  const double weight = position(p.ratio, p.numel).weight;
  const auto a = static_cast<double>(bits_as<T>(has_nan ? Magnitude<T>::kMask : below));
  const auto b = weight == 0.0 ? a : static_cast<double>(bits_as<T>(above));
  return at_most(p.max_value, at_least(p.min_value, lerp(a, b, weight)));
}

// ---- the result -----------------------------------------------------------------------------------

// clamp(x, -s, s) / s, rounded once. In float32, 1/s in two parts makes the product as good as the quotient
// of float64: its error is half an ulp and 2^-48.
template <class T>
struct Scale;

template <>
struct Scale<float> {
  float bound, high, low;  // bound: s, or the next float above it

  FASTDIFF_HD explicit Scale(double s) : bound(static_cast<float>(s)) {
    if (static_cast<double>(bound) < s) bound = bits_as<float>(bits_as<uint32_t>(bound) + 1);
    const double inverse = 1.0 / s;
    high = static_cast<float>(inverse);
    low = static_cast<float>(inverse - static_cast<double>(high));
  }
  template <class V>
  FASTDIFF_HD V operator()(V x) const {
    const V b = splat<V>(bound);
    const V inside = at_most(b, at_least(splat<V>(-bound), x));
    const V y = fma_(inside, splat<V>(high), mul(inside, splat<V>(low)));
    return at_most(splat<V>(1.0f), at_least(splat<V>(-1.0f), y));
  }
};

template <>
struct Scale<double> {
  double bound;

  FASTDIFF_HD explicit Scale(double s) : bound(s) {}
  template <class V>
  FASTDIFF_HD V operator()(V x) const {
    return div(at_most(splat<V>(bound), at_least(splat<V>(-bound), x)), splat<V>(bound));
  }
};

}  // namespace
}  // namespace fastdiff::dynamic_threshold
