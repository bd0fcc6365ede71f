// SPDX-License-Identifier: Apache-2.0
// Filters of two taps (Haar) on the CPU: nothing overlaps, so that a square or a cube of samples becomes its
// bands in registers, and back. Memory is all that there is to wait for.
//
// The sums are those of mix.h, in the same order of axes and terms. The anonymous namespace is on purpose,
// see lanes.h.
#pragma once

#include "core/runs.h"
#include "wavelet/filter_bank.h"

namespace fastdiff::wavelet {
namespace {

template <class T>
struct TwoTaps {
  T u[2], v[2];

  // Whether a stencil is one of two taps, neither of them 0.
  static bool fit(const Stencil& s) { return s.length == 2 && s.both == 2; }

  explicit TwoTaps(const Stencil& s)
      : u{static_cast<T>(s.tap[0].u), static_cast<T>(s.tap[1].u)},
        v{static_cast<T>(s.tap[0].v), static_cast<T>(s.tap[1].v)} {}

  // Bit 0 of a place in x is the last axis, the highest one the first: it goes first.
  template <int kAxes, class V>
  void apply(V (&x)[1 << kAxes]) const {
    const V zero = splat<V>(T(0));
    for (int bit = 1 << (kAxes - 1); bit > 0; bit /= 2)
      for (int i = 0; i < 1 << kAxes; ++i) {
        if (i & bit) continue;
        const V a = x[i], b = x[i | bit];
        x[i] = fma_(splat<V>(u[1]), b, fma_(splat<V>(u[0]), a, zero));
        x[i | bit] = fma_(splat<V>(v[1]), b, fma_(splat<V>(v[0]), a, zero));
      }
  }
};

// Rows, one for each place of the axes before the last, to `count` coefficients of each band.
template <int kAxes, class T, class S, class Out, class Scaled>
inline void to_bands(const TwoTaps<T>& taps, const S* const (&row)[1 << (kAxes - 1)], int64_t count,
                     Out* const (&band)[1 << kAxes], const Scaled& scaled) {
  using L = Lanes<T>;
  int64_t j = 0;
  for (; j + L::width <= count; j += L::width) {
    typename L::V x[1 << kAxes];
    for (int i = 0; i < 1 << (kAxes - 1); ++i)
      deinterleave(L::load(row[i] + 2 * j), L::load(row[i] + 2 * j + L::width), x[2 * i], x[2 * i + 1]);
    taps.template apply<kAxes>(x);
    for (int b = 0; b < 1 << kAxes; ++b) L::store(band[b] + j, scaled(x[b], b));
  }
  for (; j < count; ++j) {
    T x[1 << kAxes];
    for (int i = 0; i < 1 << kAxes; ++i) x[i] = widened<T>(row[i / 2][2 * j + i % 2]);
    taps.template apply<kAxes>(x);
    for (int b = 0; b < 1 << kAxes; ++b) band[b][j] = narrow<Out>(scaled(x[b], b));
  }
}

// And back.
template <int kAxes, class T, class S, class Out>
inline void from_bands(const TwoTaps<T>& taps, const S* const (&band)[1 << kAxes], int64_t count,
                       Out* const (&row)[1 << (kAxes - 1)]) {
  using L = Lanes<T>;
  int64_t j = 0;
  for (; j + L::width <= count; j += L::width) {
    typename L::V x[1 << kAxes];
    for (int b = 0; b < 1 << kAxes; ++b) x[b] = L::load(band[b] + j);
    taps.template apply<kAxes>(x);
    for (int i = 0; i < 1 << (kAxes - 1); ++i) {
      typename L::V low, high;
      interleave(x[2 * i], x[2 * i + 1], low, high);
      L::store(row[i] + 2 * j, low);
      L::store(row[i] + 2 * j + L::width, high);
    }
  }
  for (; j < count; ++j) {
    T x[1 << kAxes];
    for (int b = 0; b < 1 << kAxes; ++b) x[b] = widened<T>(band[b][j]);
    taps.template apply<kAxes>(x);
    for (int i = 0; i < 1 << kAxes; ++i) row[i / 2][2 * j + i % 2] = narrow<Out>(x[i]);
  }
}

}  // namespace
}  // namespace fastdiff::wavelet
