// SPDX-License-Identifier: Apache-2.0
// How the CPU divides a plane, which the desk has to know too.
#pragma once

#include "wavelet/dwt/dwt.h"
#include "wavelet/strips.h"

namespace fastdiff::dwt {
namespace {

using wavelet::kRegister;
using wavelet::scaled;

// The last axis is cut into strips, whose rows stay in the first-level cache. A strip's columns lie split by
// even and odd place, from `left` = 2 k0 - o on, and after those the columns that the edge's rule brings from
// elsewhere.
struct Tiling {
  int64_t outputs = 1;  // coefficients of a strip, but perhaps the last
  int64_t strips = 1;
  int64_t half = 0;    // elements of the even (odd) places
  int64_t extra = 0;   // and of columns from elsewhere
  int64_t frame = 0;   // three axes: elements of what the first one has made for the others; else 0
  int64_t staged = 0;  // elements of a copy of x's strip, if its rows are none
  int64_t line = 0;    // of one row of any kind

  int64_t numel() const { return 4 * (2 * half + extra) + 2 * frame + staged + 3 * line; }
};

inline Tiling tiling_of(const Params& p) {
  const wavelet::Axis& last = p.axis[p.ndim - 1];
  const int64_t length = p.stencil.length;
  const int64_t wide = p.dtype == DType::f64 ? 8 : 4;
  const int64_t frame = p.ndim == 3 ? 2 * wide * p.axis[1].size : 0;
  const int64_t limit = wavelet::strip_elements(frame, length, p.group);
  Tiling t;
  t.strips = (last.bands * p.group + limit - 1) / limit;
  if (t.strips > last.bands) t.strips = last.bands;
  t.outputs = (last.bands + t.strips - 1) / t.strips;
  t.strips = (last.bands + t.outputs - 1) / t.outputs;
  t.half = (t.outputs + length / 2) * p.group + kRegister;
  t.extra = 2 * length * p.group;
  t.line = 2 * t.half + t.extra;
  int64_t rows = 1;
  for (int a = 0; a + 1 < p.ndim; ++a) rows *= p.axis[a].size;
  if (p.ndim == 3) t.frame = p.axis[1].size * t.line;
  if (!p.x_rows) t.staged = rows * t.line;
  return t;
}

}  // namespace
}  // namespace fastdiff::dwt
