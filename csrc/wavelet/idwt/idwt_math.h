// SPDX-License-Identifier: Apache-2.0
// What the kernels of idwt agree on: what becomes of a coefficient before the sums, and how the CPU divides a
// plane.
#pragma once

#include "wavelet/idwt/idwt.h"
#include "wavelet/strips.h"

namespace fastdiff::idwt {
namespace {

using wavelet::kRegister;
using wavelet::scaled;

// Closer to 0 by the threshold, or if `hard` 0 below it; a NaN stays.
template <class T>
FASTDIFF_HD T shrunk(T value, T threshold, bool hard) {
  const T magnitude = abs_(value);
  if (hard) return magnitude < threshold ? T(0) : value;
  if (magnitude <= threshold) return T(0);
  return sub(value, value < T(0) ? -threshold : threshold);
}

// A dimension's pairs of samples: pair r is 2r - o and 2r + 1 - o.
FASTDIFF_HD int64_t first_pair(const Params& p) {
  return p.offset / 2;
}
FASTDIFF_HD int64_t pairs_of(const Params& p, const wavelet::Axis& axis) {
  return (axis.size - 1 + p.offset) / 2 - first_pair(p) + 1;
}

// Whether samples past the ends have something to add.
FASTDIFF_HD bool folds(const Params& p) {
  return p.edge != wavelet::Edge::zero && p.edge != wavelet::Edge::circular;
}

// The last axis is cut into strips of pairs, whose rows stay in the first-level cache; not if there is
// something to add from past the ends. A strip's coefficients lie in two halves, low and high, from k0 = r0 -
// L/2 + 1 on; after those are the coefficients from the other end, if the edge is circular.
struct Tiling {
  int64_t pairs = 1;  // of a strip, but perhaps the last
  int64_t strips = 1;
  int64_t half = 0;    // elements of a band
  int64_t extra = 0;   // and of its coefficients from elsewhere
  int64_t packed = 0;  // both, side by side
  int64_t frame = 0;   // three axes: elements of what the first one has made for the others; else 0
  int64_t staged = 0;  // elements of a copy of y's strip, if its rows are none or have to be changed
  int64_t line = 0;    // of a row of the signal

  int64_t row() const { return 2 * half + 2 * extra; }
  int64_t numel() const { return 6 * row() + 4 * frame + staged + 2 * line; }
};

inline Tiling tiling_of(const Params& p) {
  const wavelet::Axis& last = p.axis[p.ndim - 1];
  const int64_t length = p.stencil.length;
  const int64_t wide = p.dtype == DType::f64 ? 8 : 4;
  const int64_t frame = p.ndim == 3 ? 4 * wide * p.axis[1].bands : 0;
  const int64_t limit = wavelet::strip_elements(frame, length, p.group);
  Tiling t;
  // Where the ends are folded over, all pairs that any coefficient is a part of.
  const int64_t all = folds(p) ? last.bands + length / 2 - 1 : pairs_of(p, last);
  t.strips = folds(p) ? 1 : (all * p.group + limit - 1) / limit;
  if (t.strips > all) t.strips = all;
  t.pairs = (all + t.strips - 1) / t.strips;
  t.strips = (all + t.pairs - 1) / t.pairs;
  t.half = (t.pairs + length / 2) * p.group + kRegister;
  t.extra = length * p.group;
  t.packed = t.half + t.extra;
  t.line = 2 * t.pairs * p.group + 2 * kRegister;
  if (p.ndim == 3) t.frame = 4 * p.axis[1].bands * t.packed;
  if (!p.y_rows) {
    t.staged = 2 * t.packed;
    for (int a = 0; a + 1 < p.ndim; ++a) t.staged *= 2 * p.axis[a].bands;
  }
  return t;
}

}  // namespace
}  // namespace fastdiff::idwt
