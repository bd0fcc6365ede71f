// SPDX-License-Identifier: Apache-2.0
// idwt on the CPU, compiled once per ISA.
//
// Bytes: the bands are read once and x is written once, if the L/2 rows of each band that a pair of samples
// is made of stay in a cache. Work: L multiply-adds per element and axis. An outer axis makes two rows at a
// time of L rows of two bands; the last one makes pairs of samples from two contiguous runs and weaves them
// together on their way to memory.
#define FASTDIFF_SHORT_LANES

#include <algorithm>
#include <cstdlib>

#include "wavelet/idwt/idwt_rows.h"
#include "wavelet/two_taps.h"

namespace fastdiff::idwt {
namespace {

using wavelet::mix;
using wavelet::RowSink;
using wavelet::TwoTaps;
using wavelet::WeaveSink;

// One thread's part. In: as what bands are read; Out: as what x is stored.
template <class T, class In, class Out>
class Synthesis {
 public:
  Synthesis(const Params& p, const Tiling& tiling, T* scratch)
      : p_(p),
        t_(tiling),
        last_(p.axis[p.ndim - 1]),
        two_taps_(p.stencil),
        of_y_(p),
        of_frame_(p),
        folds_{{p, p.axis[0]}, {p, p.axis[1]}, {p, p.axis[2]}} {
    const auto take = [&scratch](int64_t count) {
      T* const taken = scratch;
      scratch += count;
      return taken;
    };
    for (T*& row : row_) row = take(t_.row());
    for (T*& frame : frame_) frame = take(t_.frame);
    for (T*& line : line_) line = take(t_.line);
    staged_ = take(t_.staged);
    for (int n = 0; n < 4; ++n) {
      Mix<T, T>& m = across_[n];
      m.both = p.stencil.both;
      m.only_u = p.stencil.only_u;
      m.only_v = p.stencil.only_v;
      for (int e = 0; e < p.stencil.taps(); ++e) {
        m.row[e] = row_[n] + p.stencil.tap[e].at % 2 * t_.half + p.stencil.tap[e].at / 2 * p.group;
        m.u[e] = static_cast<T>(p.stencil.tap[e].u);
        m.v[e] = static_cast<T>(p.stencil.tap[e].v);
      }
    }
  }

  // Units: the pairs of the first axis (one, if it is the last) of a strip of a plane.
  static int64_t units(const Params& p) { return p.ndim == 1 ? 1 : pairs_of(p, p.axis[0]); }

  void run(int64_t begin, int64_t end) {
    const int64_t pairs = units(p_);
    while (begin < end) {
      const int64_t first = begin % pairs, last = std::min(pairs, first + end - begin);
      enter(begin / pairs / t_.strips, begin / pairs % t_.strips, first, last);
      if (p_.ndim == 3) {
        for (int64_t pair = first; pair < last; ++pair) volume(first_pair(p_) + pair);
      } else if (p_.ndim == 2) {
        image(of_y_, bands_, first, last, x_);
      } else {
        line();
      }
      begin += last - first;
    }
  }

 private:
  // ---- a strip of a plane

  // For pairs [first, last) of the first axis, counted from its first pair.
  void enter(int64_t plane, int64_t strip, int64_t first, int64_t last) {
    r0_ = (folds(p_) ? 0 : first_pair(p_)) + strip * t_.pairs;
    const int64_t all =
        folds(p_) ? last_.bands + p_.stencil.length / 2 - 1 : first_pair(p_) + pairs_of(p_, last_);
    r1_ = std::min(all, r0_ + t_.pairs);
    k0_ = r0_ - p_.stencil.length / 2 + 1;
    c0_ = std::clamp<int64_t>(k0_, 0, last_.bands);
    c1_ = std::clamp<int64_t>(r1_, c0_, last_.bands);
    extras_ = pads_ = 0;
    for (int64_t k = k0_; k < c0_; ++k) add_pad(k);
    for (int64_t k = c1_; k < r1_; ++k) add_pad(k);
    x_ = p_.planes.offset(kX, plane);
    const int64_t y = p_.planes.offset(kY, plane);
    if constexpr (std::is_same_v<In, Out>) {
      if (p_.y_rows) {
        bands_.base = static_cast<const In*>(p_.y) + y;
        bands_.first = static_cast<const In*>(p_.approximation);
        if (bands_.first) bands_.first += p_.planes.offset(kApproximation, plane);
        for (int a = 0; a < p_.ndim; ++a) bands_.band[a] = p_.axis[a].band;
        for (int a = 0; a < 2; ++a) {
          bands_.stride[a] = p_.axis[a].y;
          bands_.first_stride[a] = p_.approximation_stride[a];
        }
        return;
      }
    }
    if constexpr (std::is_same_v<In, T>) stage(plane, y, first_pair(p_) + first, first_pair(p_) + last);
  }

  void add_pad(int64_t k) {
    const int64_t to = (k - k0_) * p_.group;
    if (p_.edge != wavelet::Edge::circular) {
      for (T* row : row_) {
        std::fill_n(row + to, p_.group, T(0));
        std::fill_n(row + t_.half + to, p_.group, T(0));
      }
      return;
    }
    const int64_t from = modulo(k, last_.bands);
    const bool here = c0_ <= from && from < c1_;
    pad_to_[pads_] = to;
    pad_from_[pads_++] = here ? (from - k0_) * p_.group : -1 - extra_number(from);
  }

  int64_t extra_number(int64_t k) {
    int n = 0;
    while (n < extras_ && extra_[n] != k) ++n;
    if (n == extras_) extra_[extras_++] = k;
    return n;
  }

  // Copies what the strip needs of a plane of y for pairs [first, last) of the first axis, each coefficient
  // as it enters the sums.
  void stage(int64_t plane, int64_t y, int64_t first, int64_t last) {
    const int outer = p_.ndim - 1;
    const int64_t high = outer > 0 ? p_.axis[0].bands : 1, wide = outer > 1 ? p_.axis[1].bands : 1;
    // Near the ends other rows come in, from the other end or folded over: all, then.
    const int64_t reach = folds(p_) ? p_.stencil.length : 0;
    int64_t row0 = first - p_.stencil.length / 2 + 1 - reach, row1 = last + reach;
    const bool inside = outer > 0 && row0 >= 0 && row1 <= high;
    if (p_.edge != wavelet::Edge::zero && !inside) row0 = 0, row1 = high;
    row0 = outer > 0 ? std::clamp<int64_t>(row0, 0, high) : 0;
    row1 = outer > 0 ? std::clamp<int64_t>(row1, row0, high) : 1;
    bands_.packed = true;
    bands_.base = staged_;
    bands_.stride[0] = wide * t_.packed;
    bands_.stride[1] = t_.packed;
    int64_t step = high * wide * t_.packed;
    for (int a = p_.ndim - 1; a >= 0; --a, step *= 2) bands_.band[a] = step;
    for (int band = 0; band < 1 << p_.ndim; ++band) {
      const bool apart = band == 0 && p_.approximation != nullptr;
      const int64_t plane_at =
          apart ? p_.planes.offset(kApproximation, plane) : y + band * p_.axis[p_.ndim - 1].band;
      for (int64_t h = row0; h < row1; ++h)
        for (int64_t w = 0; w < wide; ++w) {
          const auto stride = [&](int a) { return apart ? p_.approximation_stride[a] : p_.axis[a].y; };
          const int64_t from = plane_at + (outer > 0 ? h * stride(0) : 0) + (outer > 1 ? w * stride(1) : 0);
          T* const to = staged_ + ((band * high + h) * wide + w) * t_.packed;
          const void* const data = apart ? p_.approximation : p_.y;
          load_run(data, p_.dtype, from + c0_ * stride(outer), stride(outer), c1_ - c0_, to);
          for (int n = 0; n < extras_; ++n)
            to[c1_ - c0_ + n] = load_as<T>(data, p_.dtype, from + extra_[n] * stride(outer));
          change(to, c1_ - c0_ + extras_, band, plane);
        }
    }
  }

  void change(T* c, int64_t count, int band, int64_t plane) const {
    if (p_.scale.data) {
      const T factor =
          load_as<T>(p_.scale.data, p_.scale.dtype, p_.planes.offset(kScale, plane) + band * p_.scale.band);
      for (int64_t j = 0; j < count; ++j) c[j] = scaled(c[j], factor, p_.divide);
    }
    if (p_.threshold.data) {
      const T threshold = load_as<T>(p_.threshold.data, p_.threshold.dtype,
                                     p_.planes.offset(kThreshold, plane) + band * p_.threshold.band);
      for (int64_t j = 0; j < count; ++j) c[j] = shrunk(c[j], threshold, p_.hard);
    }
  }

  // ---- an outer axis, and what follows it

  // Rows u and v of a pair, of one band of the last axis, to where their columns and those from elsewhere
  // belong.
  template <class S>
  void make_rows(const Mix<T, S>& m, bool packed, T* u, T* v, T* u_extra, T* v_extra) const {
    const int64_t g = p_.group, columns = c1_ - c0_;
    mix(m, packed ? 0 : c0_ * g, columns * g, RowSink<T>{u, v});
    for (int n = 0; n < extras_; ++n)
      mix(m, (packed ? columns + n : extra_[n]) * g, g, RowSink<T>{u_extra + n * g, v_extra + n * g});
  }

  // Both samples of pair r of the axis before the last, for both bands of the last, to rows u and v.
  template <class S>
  void make_pair(OuterRows<T, S>& outer, const Bands<S>& bands, int64_t r, T* u, T* v) {
    const int a = p_.ndim - 2;
    const int64_t main = (c0_ - k0_) * p_.group, extra = 2 * t_.half;
    for (unsigned high = 0; high < 2; ++high) {
      const unsigned bits = high << (a + 1);
      const Band<S> two[2] = {bands.of(bits, a, 0), bands.of(bits | 1u << a, a, 0)};
      const int64_t half = high * t_.half, other = extra + high * t_.extra;
      make_rows(outer.at(r, p_.axis[a], two), bands.packed, u + half + main, v + half + main, u + other,
                v + other);
    }
  }

  // Adds to the two samples of pair r of the axis before the last what is past its ends and belongs to them.
  template <class S>
  void fold_rows(OuterRows<T, S>& outer, const Bands<S>& bands, int64_t r, T* const* two) {
    if (!folds_[p_.ndim - 2].reach(2 * r - p_.offset)) return;
    int64_t made = -1;  // of the pairs, in rows 4 and 5
    for (const Fold<T>& fold : folds_[p_.ndim - 2]) {
      const int64_t to = fold.n + p_.offset, from = fold.i + p_.offset;
      if (to / 2 != r) continue;
      if (made != from / 2) make_pair(outer, bands, made = from / 2, row_[4], row_[5]);
      add_row(row_[4 + from % 2], fold.weight, t_.row(), two[to % 2]);
    }
  }

  static void add_row(const T* from, T weight, int64_t count, T* to) {
    for (int64_t j = 0; j < count; ++j) to[j] = fma_(weight, from[j], to[j]);
  }

  // Asks for the coefficients that pair r is the first to need, and for where its samples go.
  template <class S>
  void prefetch_for(const Axis& axis, const Bands<S>& bands, int64_t r, int64_t x) const {
    const int a = p_.ndim - 2;
    if (!bands.packed && r < axis.bands)
      for (unsigned bits = 0; bits < 4; ++bits) {
        const Band<S> band = bands.of(bits << a, a, 0);
        if (std::abs(band.stride) * static_cast<int64_t>(sizeof(S)) >= wavelet::kFarBytes)
          wavelet::prefetch<false>(band.base + r * band.stride + c0_ * p_.group, (c1_ - c0_) * p_.group);
      }
    if (!p_.x_rows || std::abs(axis.x) * static_cast<int64_t>(sizeof(Out)) < wavelet::kFarBytes) return;
    const int64_t n0 = std::max<int64_t>(2 * r0_ - p_.offset, 0),
                  n1 = std::min(2 * r1_ - p_.offset, last_.size);
    for (int64_t n = std::max<int64_t>(2 * r - p_.offset, 0); n < std::min(2 * r + 2 - p_.offset, axis.size);
         ++n)
      wavelet::prefetch<true>(static_cast<const Out*>(p_.x) + x + n * axis.x + n0 * p_.group,
                              (n1 - n0) * p_.group);
  }

  // Pairs [first, last) of the axis before the last. What has just been stored cannot be read yet at other
  // offsets, so that the last axis is one pair behind.
  template <class S>
  void image(OuterRows<T, S>& outer, const Bands<S>& bands, int64_t first, int64_t last, int64_t x) {
    const Axis& axis = p_.axis[p_.ndim - 2];
    const auto finish_both = [&](int64_t r) {
      for (int odd = 0; odd < 2; ++odd) {
        const int64_t sample = 2 * r + odd - p_.offset;
        if (0 <= sample && sample < axis.size) finish(static_cast<int>(r % 2) * 2 + odd, x + sample * axis.x);
      }
    };
    int64_t behind = -1;
    for (int64_t r = first_pair(p_) + first; r < first_pair(p_) + last; ++r) {
      if constexpr (std::is_same_v<S, In>) {
        if (p_.ndim == 2 && is_in_pairs() && has_pair(axis, r)) {
          square<2>(r, 0, x + 2 * r * axis.x);
          continue;
        }
      }
      prefetch_for(axis, bands, r + 1, x);
      T* const* const two = row_ + r % 2 * 2;
      make_pair(outer, bands, r, two[0], two[1]);
      fold_rows(outer, bands, r, two);
      for (int n = 0; n < 2; ++n) pad_row(two[n]);
      if (behind >= 0) finish_both(behind);
      behind = r;
    }
    if (behind >= 0) finish_both(behind);
  }

  // ---- two taps

  // Whether the strip is made of whole pairs of samples, each of its own coefficients.
  bool is_in_pairs() const {
    return TwoTaps<T>::fit(p_.stencil) && p_.group == 1 && p_.x_rows && !folds(p_) && 2 * r1_ <= last_.size;
  }

  static bool has_pair(const Axis& axis, int64_t r) { return 2 * r + 2 <= axis.size; }

  // All bands of the strip at once, from those at row k (and h) of the axes before the last.
  template <int kAxes>
  void square(int64_t k, int64_t h, int64_t to) const {
    const In* band[1 << kAxes];
    Out* row[1 << (kAxes - 1)];
    for (unsigned b = 0; b < 1 << kAxes; ++b) {
      unsigned bits = 0;  // bit a: of axis a, which comes earlier in the bands' order
      for (int a = 0; a < kAxes; ++a) bits |= (b >> (kAxes - 1 - a) & 1) << a;
      const Band<In> rows = bands_.of(bits, 0, h);
      band[b] = rows.base + k * rows.stride + (bands_.packed ? 0 : c0_);
    }
    for (int i = 0; i < 1 << (kAxes - 1); ++i) {
      row[i] = static_cast<Out*>(p_.x) + to + 2 * r0_;
      for (int a = 0; a + 1 < kAxes; ++a) row[i] += (i >> (kAxes - 2 - a) & 1) * p_.axis[a].x;
    }
    wavelet::from_bands<kAxes>(two_taps_, band, r1_ - r0_, row);
  }

  void line() {
    if (is_in_pairs()) return square<1>(0, 0, x_);
    for (unsigned high = 0; high < 2; ++high) {
      const Band<In> band = bands_.of(high, 0, 0);
      T* const to = row_[0] + high * t_.half + (c0_ - k0_) * p_.group;
      const int64_t g = p_.group, columns = c1_ - c0_;
      widen_run(band.base + (bands_.packed ? 0 : c0_ * g), columns * g, to);
      for (int n = 0; n < extras_; ++n)
        widen_run(band.base + (bands_.packed ? columns + n : extra_[n]) * g, g,
                  row_[0] + 2 * t_.half + high * t_.extra + n * g);
    }
    pad_row(row_[0]);
    finish(0, x_);
  }

  void volume(int64_t r) {
    const Axis &first = p_.axis[0], &second = p_.axis[1];
    if (is_in_pairs() && has_pair(first, r) && second.size % 2 == 0) {
      for (int64_t h = 0; h < second.bands; ++h) square<3>(r, h, x_ + 2 * r * first.x + 2 * h * second.x);
      return;
    }
    make_frames(r, frame_[0], frame_[1]);
    int64_t made = -1;  // of the pairs, in frames 2 and 3
    for (const Fold<T>& fold : folds_[0]) {
      const int64_t to = fold.n + p_.offset, from = fold.i + p_.offset;
      if (to / 2 != r) continue;
      if (made != from / 2) make_frames(made = from / 2, frame_[2], frame_[3]);
      add_row(frame_[2 + from % 2], fold.weight, t_.frame, frame_[to % 2]);
    }
    for (int n = 0; n < 2; ++n) {
      const int64_t sample = 2 * r + n - p_.offset;
      if (sample < 0 || sample >= first.size) continue;
      Bands<T> made;
      made.base = frame_[n];
      made.stride[1] = t_.packed;
      made.band[2] = second.bands * t_.packed;
      made.band[1] = 2 * made.band[2];
      made.packed = true;
      image(of_frame_, made, 0, pairs_of(p_, second), x_ + sample * first.x);
    }
  }

  // Both samples of pair r of the first of three axes: all bands of the others, packed.
  void make_frames(int64_t r, T* u, T* v) {
    const int64_t columns = c1_ - c0_, rows = p_.axis[1].bands;
    for (unsigned bits = 0; bits < 4; ++bits)
      for (int64_t k = 0; k < rows; ++k) {
        // Bit 0 is axis 1, which comes before axis 2 in the bands' order.
        const unsigned here = (bits & 1) << 1 | (bits & 2) << 1;
        const Band<In> two[2] = {bands_.of(here, 0, k), bands_.of(here | 1, 0, k)};
        const int64_t to = ((bits & 1) * 2 + (bits >> 1)) * rows * t_.packed + k * t_.packed;
        const int64_t extra = to + columns * p_.group;
        make_rows(of_y_.at(r, p_.axis[0], two), bands_.packed, u + to, v + to, u + extra, v + extra);
      }
  }

  // ---- the last axis

  void pad_row(T* row) const {
    for (int n = 0; n < pads_; ++n)
      for (int high = 0; high < 2; ++high) {
        T* const half = row + high * t_.half;
        const int64_t from = pad_from_[n];
        const T* const source =
            from >= 0 ? half + from : row + 2 * t_.half + high * t_.extra + (-1 - from) * p_.group;
        std::copy_n(source, p_.group, half + pad_to_[n]);
      }
  }

  // Sample row n, to x.
  void finish(int n, int64_t x) {
    if constexpr (std::is_same_v<Out, T>) {
      if (folds(p_) && p_.x_rows && p_.group == 1)
        return finish_folded_in_place(n, static_cast<T*>(p_.x) + x);
    }
    if (folds(p_)) return finish_folded(n, x);
    if (p_.x_rows && p_.group == 1) return finish_woven(n, static_cast<Out*>(p_.x) + x);
    mix(across_[n], 0, (r1_ - r0_) * p_.group, RowSink<T>{line_[0], line_[1]});
    for (int64_t pair = r0_; pair < r1_; ++pair)
      for (int odd = 0; odd < 2; ++odd) {
        const int64_t sample = 2 * pair + odd - p_.offset;
        if (sample < 0 || sample >= last_.size) continue;
        store(line_[odd] + (pair - r0_) * p_.group, x + sample * last_.x);
      }
  }

  void store(const T* position, int64_t to) const {
    Out* const x = static_cast<Out*>(p_.x) + to;
    for (int64_t e = 0; e < p_.group; ++e) x[e] = narrow<Out>(position[e]);
  }

  // Of the strip's pairs, those whose samples are there; at an end there may be one of two.
  void finish_woven(int n, Out* x) {
    const Mix<T, T>& m = across_[n];
    const int64_t begin = std::max(r0_, (p_.offset + 1) / 2 + int64_t{0}),
                  end = std::min(r1_, (last_.size + p_.offset) / 2);
    const bool odd_first = p_.offset % 2 == 1 && r0_ <= p_.offset / 2 && p_.offset / 2 < r1_;
    const bool even_last = (last_.size + p_.offset) % 2 == 1 && r0_ <= end && end < r1_;
    if (odd_first) {
      mix(m, p_.offset / 2 - r0_, 1, RowSink<T>{line_[0], line_[1]});
      x[0] = narrow<Out>(line_[1][0]);
    }
    if (even_last) {
      mix(m, end - r0_, 1, RowSink<T>{line_[0], line_[1]});
      x[last_.size - 1] = narrow<Out>(line_[0][0]);
    }
    if (begin < end) mix(m, begin - r0_, end - begin, WeaveSink<T, Out>{x + 2 * begin - p_.offset});
  }

  // The same, and then samples past the ends are added to their own where those are already.
  void finish_folded_in_place(int n, T* x) {
    finish_woven(n, x);
    mix(across_[n], 0, whole(pairs_before()), WeaveSink<T, T>{line_[0]});
    mix(across_[n], pairs_until_end(), whole(r1_ - pairs_until_end()), WeaveSink<T, T>{line_[1]});
    const T *const before = line_[0] + p_.offset, *const after = line_[1] + p_.offset - 2 * pairs_until_end();
    const Fold<T>*fold = folds_[p_.ndim - 1].begin(), *const end = folds_[p_.ndim - 1].end();
    for (; fold != end && fold->i < 0; ++fold) x[fold->n] = fma_(fold->weight, before[fold->i], x[fold->n]);
    for (; fold != end; ++fold) x[fold->n] = fma_(fold->weight, after[fold->i], x[fold->n]);
  }

  // Of the pairs of the last axis, those with a sample before its first one, and those without one after its
  // last.
  int64_t pairs_before() const { return (p_.offset + 1) / 2; }
  int64_t pairs_until_end() const { return (last_.size + p_.offset) / 2; }

  // Whole registers, of which the rows have some more than they need.
  static int64_t whole(int64_t count) {
    return (count + Lanes<T>::width - 1) / Lanes<T>::width * Lanes<T>::width;
  }

  // All that there is along the axis, past its ends too; then those samples are added to their own.
  void finish_folded(int n, int64_t x) {
    const int64_t g = p_.group, pairs = r1_ - r0_;
    T* const all = line_[0];
    if (g == 1) {
      mix(across_[n], 0, pairs, WeaveSink<T, T>{all});
    } else {
      T* const apart[2] = {line_[1], line_[1] + pairs * g};
      mix(across_[n], 0, pairs * g, RowSink<T>{apart[0], apart[1]});
      for (int64_t i = 0; i < 2 * pairs; ++i) std::copy_n(apart[i % 2] + i / 2 * g, g, all + i * g);
    }
    T* const inside = all + p_.offset * g;
    for (const Fold<T>& fold : folds_[p_.ndim - 1])
      for (int64_t e = 0; e < g; ++e)
        inside[fold.n * g + e] = fma_(fold.weight, inside[fold.i * g + e], inside[fold.n * g + e]);
    if (p_.x_rows) {
      wavelet::narrow_row(inside, last_.size * g, static_cast<Out*>(p_.x) + x);
    } else {
      for (int64_t i = 0; i < last_.size; ++i) store(inside + i * g, x + i * last_.x);
    }
  }

  const Params& p_;
  const Tiling& t_;
  const Axis& last_;
  const TwoTaps<T> two_taps_;
  OuterRows<T, In> of_y_;
  OuterRows<T, T> of_frame_;
  const Folds<T> folds_[wavelet::kMaxSpatial];
  Mix<T, T> across_[4];  // along the last axis, of rows 0 to 3

  T *row_[6], *frame_[4], *line_[2], *staged_;

  // Of the strip: its pairs [r0, r1), the coefficients [c0, c1) that there are for them, and the place of the
  // first that there would be.
  int64_t r0_ = 0, r1_ = 0, k0_ = 0, c0_ = 0, c1_ = 0;
  int64_t pad_to_[2 * kMaxTaps], pad_from_[2 * kMaxTaps];  // from: a place, or -1 - n of an extra one
  int pads_ = 0;
  int64_t extra_[2 * kMaxTaps];
  int extras_ = 0;
  Bands<In> bands_;
  int64_t x_ = 0;
};

template <class T, class In, class Out>
void run_units(const Params& p, T* scratch, const Team& team) {
  const Tiling tiling = tiling_of(p);
  const int64_t units = p.planes.count * tiling.strips * Synthesis<T, In, Out>::units(p);
  const int64_t parts = std::min<int64_t>(team.threads, units);
  each_part(team, parts, [&](int64_t part) {
    Synthesis<T, In, Out> synthesis(p, tiling, scratch + part * tiling.numel());
    synthesis.run(units * part / parts, units * (part + 1) / parts);
  });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.dtype == DType::f64) {
    return run_units<double, double, double>(params, static_cast<double*>(scratch), team);
  }
  with_storage<float>(params.dtype, [&]<class S>(S) {
    float* const memory = static_cast<float*>(scratch);
    if (params.y_rows) {
      run_units<float, S, S>(params, memory, team);
    } else {
      run_units<float, float, S>(params, memory, team);
    }
  });
}

}  // namespace fastdiff::idwt
