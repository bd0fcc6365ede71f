// SPDX-License-Identifier: Apache-2.0
// Where idwt on the CPU finds the rows of bands that a pair of samples is made of, and what is folded over.
#pragma once

#include <algorithm>
#include <limits>

#include "wavelet/idwt/idwt_math.h"
#include "wavelet/mix.h"

namespace fastdiff::idwt {
namespace {

using wavelet::Axis;
using wavelet::extend;
using wavelet::Extension;
using wavelet::kMaxTaps;
using wavelet::Mix;
using wavelet::modulo;
using wavelet::Stencil;

// Sample n gets `weight` times what there is past the ends at i.
template <class T>
struct Fold {
  int64_t n, i;
  T weight;
};

template <class T>
class Folds {
 public:
  Folds(const Params& p, const Axis& axis) {
    if (!folds(p) || axis.size == 0) return;  // nothing to add, or no axis
    const int64_t end = 2 * (axis.bands - 1) + p.stencil.length - p.offset;
    for (int64_t i = -p.offset; i < 0; ++i) add(i, axis.size, p.edge);
    for (int64_t i = axis.size; i < end; ++i) add(i, axis.size, p.edge);
  }
  const Fold<T>* begin() const { return fold_; }
  const Fold<T>* end() const { return fold_ + count_; }

  // Whether one of two samples from n on may get something.
  bool reach(int64_t n) const { return n <= low_ || n + 1 >= high_; }

 private:
  void add(int64_t i, int64_t size, wavelet::Edge edge) {
    const Extension x = extend(i, size, edge);
    for (int n = 0; n < x.count; ++n) {
      fold_[count_++] = {x.at[n], i, static_cast<T>(x.weight[n])};
      if (2 * x.at[n] < size) {
        low_ = std::max(low_, x.at[n]);
      } else {
        high_ = std::min(high_, x.at[n]);
      }
    }
  }

  int count_ = 0;
  int64_t low_ = -2, high_ = std::numeric_limits<int64_t>::max();  // the innermost of either half
  Fold<T> fold_[3 * 2 * kMaxTaps];
};

// A band's rows along an outer axis.
template <class S>
struct Band {
  const S* base;
  int64_t stride;
};

// The rows of two bands that make up pair r of an outer axis.
template <class T, class S>
class OuterRows {
 public:
  OuterRows(const Params& p) : s_(p.stencil), circular_(p.edge == wavelet::Edge::circular) {
    inside_.both = s_.both;
    inside_.only_u = s_.only_u;
    inside_.only_v = s_.only_v;
    for (int e = 0; e < s_.taps(); ++e) {
      inside_.u[e] = static_cast<T>(s_.tap[e].u);
      inside_.v[e] = static_cast<T>(s_.tap[e].v);
    }
  }

  const Mix<T, S>& at(int64_t r, const Axis& axis, const Band<S> (&band)[2]) {
    const int64_t first = r - s_.length / 2 + 1;
    if (first < 0 || r >= axis.bands) return at_edge(first, axis, band);
    if (band[0].stride != stride_[0] || band[1].stride != stride_[1]) {
      for (int b = 0; b < 2; ++b) stride_[b] = band[b].stride;
      for (int e = 0; e < s_.taps(); ++e) offset_[e] = s_.tap[e].at / 2 * stride_[s_.tap[e].at % 2];
    }
    const S* const start[2] = {band[0].base + first * stride_[0], band[1].base + first * stride_[1]};
    for (int e = 0; e < s_.taps(); ++e) inside_.row[e] = start[s_.tap[e].at & 1] + offset_[e];
    return inside_;
  }

 private:
  const Mix<T, S>& at_edge(int64_t first, const Axis& axis, const Band<S> (&band)[2]) {
    int from = 0, kept = 0;
    const auto keep = [&](int count) {
      const int before = kept;
      for (const int end = from + count; from < end; ++from) {
        int64_t k = first + s_.tap[from].at / 2;
        if (circular_) k = modulo(k, axis.bands);
        if (k < 0 || k >= axis.bands) continue;
        const Band<S>& b = band[s_.tap[from].at % 2];
        edge_.row[kept] = b.base + k * b.stride;
        edge_.u[kept] = inside_.u[from];
        edge_.v[kept++] = inside_.v[from];
      }
      return kept - before;
    };
    edge_.both = keep(s_.both);
    edge_.only_u = keep(s_.only_u);
    edge_.only_v = keep(s_.only_v);
    return edge_;
  }

  const Stencil& s_;
  const bool circular_;
  int64_t stride_[2] = {};
  int64_t offset_[kMaxTaps] = {};  // of the taps' rows in their bands, at these strides
  Mix<T, S> inside_, edge_;
};

// Where the bands of a plane are: band by band along each axis, in memory or packed to what a strip needs.
template <class S>
struct Bands {
  const S* base = nullptr;
  int64_t stride[2] = {};  // of the outer axes
  int64_t band[wavelet::kMaxSpatial] = {};
  const S* first = nullptr;  // if the first band is somewhere else
  int64_t first_stride[2] = {};
  bool packed = false;

  // That of these bits (bit a: of axis a), to be read along an axis, at row `at` of the other outer one.
  Band<S> of(unsigned bits, int axis, int64_t at) const {
    const bool apart = bits == 0 && first != nullptr;
    const S* from = apart ? first : base;
    const int64_t* const step = apart ? first_stride : stride;
    for (int a = 0; a < wavelet::kMaxSpatial; ++a)
      if (bits >> a & 1) from += band[a];
    return {from + at * step[1 - axis], step[axis]};
  }
};

}  // namespace
}  // namespace fastdiff::idwt
