// SPDX-License-Identifier: Apache-2.0
// dwt on the CPU, compiled once per ISA.
//
// Bytes: x is read once and the bands are written once, if a plane's L rows stay in a cache while they are
// used L/2 times. Work: L multiply-adds per element and axis. An outer axis makes two rows of L rows at a
// time; they are split by even and odd place on their way into the first-level cache, so that the last axis
// makes its two bands from contiguous runs as well.
#define FASTDIFF_SHORT_LANES

#include <algorithm>
#include <cstdlib>

#include "wavelet/dwt/dwt_math.h"
#include "wavelet/mix.h"
#include "wavelet/two_taps.h"

namespace fastdiff::dwt {
namespace {

using wavelet::Axis;
using wavelet::BandSink;
using wavelet::extend;
using wavelet::Extension;
using wavelet::kMaxTaps;
using wavelet::Mix;
using wavelet::mix;
using wavelet::RowSink;
using wavelet::SplitSink;
using wavelet::Stencil;
using wavelet::TwoTaps;

// The rows that make up coefficient k of an outer axis.
template <class T, class S>
class OuterRows {
 public:
  explicit OuterRows(const Stencil& stencil) : s_(stencil) {
    inside_.both = s_.both;
    inside_.only_u = s_.only_u;
    inside_.only_v = s_.only_v;
    for (int e = 0; e < s_.taps(); ++e) {
      inside_.u[e] = static_cast<T>(s_.tap[e].u);
      inside_.v[e] = static_cast<T>(s_.tap[e].v);
    }
  }

  // Null: one of them is itself a sum of rows, see add_terms.
  const Mix<T, S>* at(int64_t k, const Axis& axis, wavelet::Edge edge, const S* base, int64_t stride) {
    const int64_t first = 2 * k - s_.offset;
    if (first < 0 || first + s_.length > axis.size) return at_edge(k, axis, edge, base, stride);
    if (stride != stride_) {
      stride_ = stride;
      for (int e = 0; e < s_.taps(); ++e) offset_[e] = s_.tap[e].at * stride;
    }
    const S* const start = base + first * stride;
    for (int e = 0; e < s_.taps(); ++e) inside_.row[e] = start + offset_[e];
    return &inside_;
  }

  // The same sums where rows past the ends are sums themselves: u and v are rows of `count` elements from
  // `from` on. `extended` is another.
  void add_terms(int64_t k, const Axis& axis, wavelet::Edge edge, const S* base, int64_t stride, int64_t from,
                 int64_t count, T* extended, T* u, T* v) const {
    const int64_t first = 2 * k - s_.offset;
    std::fill_n(u, count, T(0));
    std::fill_n(v, count, T(0));
    for (int e = 0; e < s_.taps(); ++e) {
      const int64_t i = first + s_.tap[e].at;
      const bool inside = 0 <= i && i < axis.size;
      const Extension x = inside ? Extension{1, {i}, {1}} : extend(i, axis.size, edge);
      std::fill_n(extended, count, T(0));
      for (int n = 0; n < x.count; ++n) {
        const S* row = base + x.at[n] * stride + from;
        const T weight = static_cast<T>(x.weight[n]);
        for (int64_t j = 0; j < count; ++j) extended[j] = fma_(weight, widened<T>(row[j]), extended[j]);
      }
      if (e < s_.both + s_.only_u)
        for (int64_t j = 0; j < count; ++j) u[j] = fma_(inside_.u[e], extended[j], u[j]);
      if (e < s_.both || e >= s_.both + s_.only_u)
        for (int64_t j = 0; j < count; ++j) v[j] = fma_(inside_.v[e], extended[j], v[j]);
    }
  }

 private:
  const Mix<T, S>* at_edge(int64_t k, const Axis& axis, wavelet::Edge edge, const S* base, int64_t stride) {
    const int64_t first = 2 * k - s_.offset;
    int from = 0, kept = 0;
    const auto keep = [&](int count) {
      const int before = kept;
      for (const int end = from + count; from < end; ++from) {
        const int64_t i = first + s_.tap[from].at;
        const bool inside = 0 <= i && i < axis.size;
        const Extension x = inside ? Extension{1, {i}, {1}} : extend(i, axis.size, edge);
        if (x.count > 1) return -1;
        if (x.count == 0) continue;
        edge_.row[kept] = base + x.at[0] * stride;
        edge_.u[kept] = inside_.u[from] * static_cast<T>(x.weight[0]);  // 1 or -1
        edge_.v[kept++] = inside_.v[from] * static_cast<T>(x.weight[0]);
      }
      return kept - before;
    };
    edge_.both = keep(s_.both);
    if (edge_.both < 0) return nullptr;
    edge_.only_u = keep(s_.only_u);
    if (edge_.only_u < 0) return nullptr;
    edge_.only_v = keep(s_.only_v);
    return edge_.only_v < 0 ? nullptr : &edge_;
  }

  const Stencil& s_;
  int64_t stride_ = 0;
  int64_t offset_[kMaxTaps] = {};  // of the taps' rows, at this stride
  Mix<T, S> inside_, edge_;
};

// Where an axis finds its rows: in memory, or packed to the columns that a strip needs.
template <class S>
struct Rows {
  const S* base = nullptr;
  int64_t stride[2] = {};  // of the outer axes
  bool packed = false;
};

// One thread's part. In: as what rows of x are read; Out: as what the bands are stored.
template <class T, class In, class Out>
class Analysis {
 public:
  Analysis(const Params& p, const Tiling& tiling, T* scratch)
      : p_(p),
        t_(tiling),
        last_(p.axis[p.ndim - 1]),
        two_taps_(p.stencil),
        of_x_(p.stencil),
        of_frame_(p.stencil) {
    const auto take = [&scratch](int64_t count) {
      T* const taken = scratch;
      scratch += count;
      return taken;
    };
    for (T*& split : split_) split = take(2 * t_.half + t_.extra);
    for (T*& frame : frame_) frame = take(t_.frame);
    for (T*& line : line_) line = take(t_.line);
    staged_ = take(t_.staged);
    for (int n = 0; n < 4; ++n) {
      Mix<T, T>& m = across_[n];
      m.both = p.stencil.both;
      m.only_u = p.stencil.only_u;
      m.only_v = p.stencil.only_v;
      for (int e = 0; e < p.stencil.taps(); ++e) {
        m.row[e] = split_[n] + place(p.stencil.tap[e].at);
        m.u[e] = static_cast<T>(p.stencil.tap[e].u);
        m.v[e] = static_cast<T>(p.stencil.tap[e].v);
      }
    }
  }

  // Units: the rows of the first axis (one, if it is the last) of a strip of a plane.
  static int64_t rows(const Params& p) { return p.ndim == 1 ? 1 : p.axis[0].grid; }

  void run(int64_t begin, int64_t end) {
    const int64_t rows = Analysis::rows(p_);
    while (begin < end) {
      const int64_t first = begin % rows, last = std::min(rows, first + end - begin);
      enter(begin / rows / t_.strips, begin / rows % t_.strips, first, last);
      if (p_.ndim == 3) {
        for (int64_t k = first; k < last; ++k) volume(k);
      } else if (p_.ndim == 2) {
        image(of_x_, rows_, rows_.base, rows_.stride[0], first, last, y_, 0);
      } else {
        line();
      }
      begin += last - first;
    }
  }

 private:
  // A place past a strip's columns: its element among the split ones, as a sum of others.
  struct Pad {
    int64_t to;
    int count;
    int64_t from[3];
    T weight[3];
  };

  // Where the column at `at` from the strip's left end lies among the split ones.
  int64_t place(int64_t at) const { return at % 2 * t_.half + at / 2 * p_.group; }

  // ---- a strip of a plane

  // For rows [first, last) of the first axis.
  void enter(int64_t plane, int64_t strip, int64_t first, int64_t last) {
    k0_ = strip * t_.outputs;
    k1_ = std::min(last_.bands, k0_ + t_.outputs);
    left_ = 2 * k0_ - p_.stencil.offset;
    const int64_t right = left_ + 2 * (k1_ - k0_ - 1) + p_.stencil.length;
    c0_ = std::clamp<int64_t>(left_, 0, last_.size);
    c1_ = std::clamp<int64_t>(right, c0_, last_.size);
    pads_ = copies_ = extras_ = 0;
    for (int64_t i = left_; i < c0_; ++i) add_pad(i);
    for (int64_t i = c1_; i < right; ++i) add_pad(i);
    y_ = p_.planes.offset(kY, plane) + k0_ * last_.y;
    if (p_.scale.data != nullptr) set_factors(p_.planes.offset(kScale, plane));
    const int64_t x = p_.planes.offset(kX, plane);
    if constexpr (std::is_same_v<In, Out>) {
      if (p_.x_rows) {
        rows_ = {static_cast<const In*>(p_.x) + x, {p_.axis[0].x, p_.axis[1].x}, false};
        return;
      }
    }
    if constexpr (std::is_same_v<In, T>) stage(x, first, last);
  }

  void add_pad(int64_t i) {
    const Extension x = extend(i, last_.size, p_.edge);
    const int64_t to = place(i - left_);
    for (T* split : split_) std::fill_n(split + to, p_.group, T(0));
    if (x.count == 0) return;
    if (x.count == 1 && x.weight[0] == 1 && p_.group == 1) {
      copy_to_[copies_] = to;
      copy_from_[copies_++] = source_of(x.at[0]);
      return;
    }
    Pad& pad = pad_[pads_++];
    pad.to = to;
    pad.count = x.count;
    for (int n = 0; n < x.count; ++n) {
      pad.weight[n] = static_cast<T>(x.weight[n]);
      pad.from[n] = source_of(x.at[n]);
    }
  }

  // Where a column lies, among the strip's own or after them.
  int64_t source_of(int64_t column) {
    if (c0_ <= column && column < c1_) return place(column - left_);
    return 2 * t_.half + extra_number(column) * p_.group;
  }

  int extra_number(int64_t column) {
    int n = 0;
    while (n < extras_ && extra_[n] != column) ++n;
    if (n == extras_) extra_[extras_++] = column;
    return n;
  }

  void set_factors(int64_t at) {
    for (int band = 0; band < 1 << p_.ndim; ++band)
      factor_[band] = load_as<T>(p_.scale.data, p_.scale.dtype, at + band * p_.scale.band);
  }

  // Copies what the strip needs of a plane of x whose rows are not rows of memory, for rows [first, last) of
  // the bands' first axis.
  void stage(int64_t x, int64_t first, int64_t last) {
    const Axis& outer = p_.axis[0];
    const bool deep = p_.ndim == 3;
    const int64_t high = p_.ndim == 1 ? 1 : outer.size, wide = deep ? p_.axis[1].size : 1;
    int64_t row0 = 2 * first - p_.stencil.offset,
            row1 = 2 * (last - 1) - p_.stencil.offset + p_.stencil.length;
    const bool inside = p_.ndim > 1 && row0 >= 0 && row1 <= high;
    if (p_.edge != wavelet::Edge::zero && !inside) row0 = 0, row1 = high;  // past the ends stand others
    row0 = p_.ndim > 1 ? std::clamp<int64_t>(row0, 0, high) : 0;
    row1 = p_.ndim > 1 ? std::clamp<int64_t>(row1, row0, high) : 1;
    for (int64_t h = row0; h < row1; ++h)
      for (int64_t w = 0; w < wide; ++w) {
        const int64_t from = x + h * outer.x * (p_.ndim > 1) + w * p_.axis[1].x * deep;
        T* const to = staged_ + (h * wide + w) * t_.line;
        load_run(p_.x, p_.dtype, from + c0_ * last_.x, last_.x, c1_ - c0_, to);
        for (int n = 0; n < extras_; ++n)
          to[c1_ - c0_ + n] = load_as<T>(p_.x, p_.dtype, from + extra_[n] * last_.x);
      }
    rows_ = {staged_, {wide * t_.line, t_.line}, true};
  }

  // ---- an outer axis, and what follows it

  // Calls part(where in a row, how many elements, where in the split row) for the strip's columns and for
  // those from elsewhere.
  template <class S, class Part>
  void each_part(const Rows<S>& rows, const Part& part) const {
    const int64_t g = p_.group, columns = c1_ - c0_;
    part(rows.packed ? 0 : c0_ * g, columns * g, 0);
    for (int n = 0; n < extras_; ++n) part((rows.packed ? columns + n : extra_[n]) * g, g, 1 + n);
  }

  // Rows u and v of coefficient k, packed to the strip.
  template <class S>
  void make_rows(OuterRows<T, S>& outer, const Rows<S>& rows, const Axis& axis, const S* base, int64_t stride,
                 int64_t k, T* u, T* v) {
    const Mix<T, S>* const m = outer.at(k, axis, p_.edge, base, stride);
    each_part(rows, [&](int64_t from, int64_t count, int part) {
      const int64_t at = part == 0 ? 0 : (c1_ - c0_ + part - 1) * p_.group;
      if (m) {
        mix(*m, from, count, RowSink<T>{u + at, v + at});
      } else {
        outer.add_terms(k, axis, p_.edge, base, stride, from, count, line_[2], u + at, v + at);
      }
    });
  }

  // The same, split, as rows n and n + 1.
  template <class S>
  void make_split_rows(OuterRows<T, S>& outer, const Rows<S>& rows, const Axis& axis, const S* base,
                       int64_t stride, int64_t k, int n) {
    T *const u = split_[n], *const v = split_[n + 1];
    const Mix<T, S>* const m = outer.at(k, axis, p_.edge, base, stride);
    if (m == nullptr || p_.group > 1) {
      make_rows(outer, rows, axis, base, stride, k, line_[0], line_[1]);
      split_row(line_[0], u);
      split_row(line_[1], v);
    } else {
      each_part(rows, [&](int64_t from, int64_t count, int part) {
        if (part == 0) {
          wavelet::mix_pairs(*m, from, count, split_sink(u, v));
        } else {
          const int64_t at = 2 * t_.half + part - 1;
          mix(*m, from, count, RowSink<T>{u + at, v + at});
        }
      });
    }
    pad_row(u);
    pad_row(v);
  }

  // The strip's own columns, of which the first may be at an odd place.
  template <class S>
  void split_own(const S* row, T* split) const {
    const int64_t first = c0_ - left_;
    wavelet::split(row, c1_ - c0_, split + place(first), split + place(first + 1));
  }
  SplitSink<T> split_sink(T* u, T* v) const {
    const int64_t first = c0_ - left_;
    return {{u + place(first), u + place(first + 1)}, {v + place(first), v + place(first + 1)}};
  }

  // A packed row, split.
  void split_row(const T* row, T* split) const {
    const int64_t g = p_.group, columns = c1_ - c0_;
    if (g == 1) {
      split_own(row, split);
    } else {
      for (int64_t c = 0; c < columns; ++c) std::copy_n(row + c * g, g, split + place(c0_ - left_ + c));
    }
    std::copy_n(row + columns * g, extras_ * g, split + 2 * t_.half);
  }

  void pad_row(T* split) const {
    for (int n = 0; n < copies_; ++n) split[copy_to_[n]] = split[copy_from_[n]];
    for (int n = 0; n < pads_; ++n) {
      const Pad& pad = pad_[n];
      for (int64_t e = 0; e < p_.group; ++e) {
        T sum = 0;
        for (int i = 0; i < pad.count; ++i) sum = fma_(pad.weight[i], split[pad.from[i] + e], sum);
        split[pad.to + e] = sum;
      }
    }
  }

  // ---- the last axis

  // Both bands of split row n, at `to` of y and after, with the numbers of the first one.
  void finish(int n, int64_t to, int band) {
    const int64_t count = (k1_ - k0_) * p_.group;
    Out* const u = static_cast<Out*>(p_.y) + to;
    if (!p_.y_rows) {
      store(n, RowSink<T>{line_[0], line_[1]}, count);
      for (int high = 0; high < 2; ++high)
        for (int64_t j = 0; j < count; ++j) {
          const T value =
              p_.scale.data ? scaled(line_[high][j], factor_[band + high], p_.divide) : line_[high][j];
          u[high * last_.band + j * last_.y] = narrow<Out>(value);
        }
    } else if (p_.scale.data) {
      store(n, BandSink<T, Out, true>{u, u + last_.band, factor_[band], factor_[band + 1], p_.divide}, count);
    } else {
      store(n, BandSink<T, Out, false>{u, u + last_.band, 0, 0, false}, count);
    }
    if (k1_ == last_.bands) clear(to + count / p_.group * last_.y, last_.grid - k1_, 1);
  }

  template <class Sink>
  void store(int n, const Sink& sink, int64_t count) const {
    mix(across_[n], 0, count, sink);
  }

  // Zeros in `count` positions of `pairs` pairs of bands, as far apart as the axis before puts them.
  void clear(int64_t to, int64_t count, int pairs) const {
    if (count <= 0) return;
    Out* const y = static_cast<Out*>(p_.y) + to;
    for (int band = 0; band < 2 * pairs; ++band) {
      Out* const row = y + band * last_.band;
      if (p_.y_rows) {
        std::fill_n(row, count * p_.group, Out{});
      } else {
        for (int64_t j = 0; j < count; ++j) row[j * last_.y] = Out{};
      }
    }
  }

  // All that a strip has of a row of the grid that no band reaches.
  void clear_row(int64_t to, int pairs) const {
    clear(to, (k1_ == last_.bands ? last_.grid : k1_) - k0_, pairs);
  }

  // ---- two taps

  // Whether the strip is made of whole pairs of columns.
  bool is_in_pairs() const {
    return TwoTaps<T>::fit(p_.stencil) && p_.group == 1 && p_.y_rows && c1_ - c0_ == 2 * (k1_ - k0_);
  }

  static bool has_pair(const Axis& axis, int64_t k) { return 2 * k + 2 <= axis.size; }

  // All bands of the strip at once, from rows of the axes before the last, the first of which is at `from` of
  // x.
  template <int kAxes>
  void square(const In* from, int64_t to) const {
    const In* row[1 << (kAxes - 1)];
    Out* band[1 << kAxes];
    for (int i = 0; i < 1 << (kAxes - 1); ++i) {
      row[i] = from + (rows_.packed ? 0 : c0_);
      for (int a = 0; a + 1 < kAxes; ++a) row[i] += (i >> (kAxes - 2 - a) & 1) * rows_.stride[a];
    }
    for (int b = 0; b < 1 << kAxes; ++b) band[b] = static_cast<Out*>(p_.y) + to + b * last_.band;
    if (p_.scale.data) {
      to_bands<kAxes>(two_taps_, row, k1_ - k0_, band, [this]<class V>(V value, int b) {
        return scaled(value, splat<V>(factor_[b]), p_.divide);
      });
    } else {
      to_bands<kAxes>(two_taps_, row, k1_ - k0_, band, []<class V>(V value, int) { return value; });
    }
    if (k1_ == last_.bands) clear(to + k1_ - k0_, last_.grid - k1_, 1 << (kAxes - 1));
  }

  void line() {
    if (is_in_pairs()) return square<1>(rows_.base, y_);
    const int64_t at = rows_.packed ? 0 : c0_ * p_.group;
    if (p_.group == 1) {
      split_own(rows_.base + at, split_[0]);
      for (int n = 0; n < extras_; ++n)
        split_[0][2 * t_.half + n] = widened<T>(rows_.base[rows_.packed ? c1_ - c0_ + n : extra_[n]]);
    } else {
      each_part(rows_, [&](int64_t from, int64_t count, int part) {
        for (int64_t e = 0; e < count; ++e) {
          const int64_t to =
              part == 0 ? place(c0_ - left_ + e / p_.group) : 2 * t_.half + (part - 1) * p_.group;
          split_[0][to + e % p_.group] = widened<T>(rows_.base[from + e]);
        }
      });
    }
    pad_row(split_[0]);
    finish(0, y_, 0);
  }

  // Asks for the two rows that coefficient k is the first to need, and for where its bands go.
  template <class S>
  void prefetch_for(const Axis& axis, const Rows<S>& rows, const S* base, int64_t stride, int64_t k,
                    int64_t y) const {
    if (!rows.packed && std::abs(stride) * static_cast<int64_t>(sizeof(S)) >= wavelet::kFarBytes) {
      const int64_t end = std::min(2 * k - p_.stencil.offset + p_.stencil.length, axis.size);
      for (int64_t row = std::max<int64_t>(end - 2, 0); row < end; ++row)
        wavelet::prefetch<false>(base + row * stride + c0_ * p_.group, (c1_ - c0_) * p_.group);
    }
    if (p_.y_rows && k < axis.bands &&
        std::abs(axis.y) * static_cast<int64_t>(sizeof(Out)) >= wavelet::kFarBytes)
      for (int band = 0; band < 4; ++band)
        wavelet::prefetch<true>(static_cast<const Out*>(p_.y) + y + k * axis.y + band * last_.band,
                                (k1_ - k0_) * p_.group);
  }

  // Coefficients [first, last) of the axis before the last. What has just been stored cannot be read yet at
  // other offsets, so that the last axis is one coefficient behind.
  template <class S>
  void image(OuterRows<T, S>& outer, const Rows<S>& rows, const S* base, int64_t stride, int64_t first,
             int64_t last, int64_t y, int band) {
    const Axis& axis = p_.axis[p_.ndim - 2];
    const auto finish_both = [&](int64_t k) {
      const int64_t to = y + k * axis.y;
      finish(static_cast<int>(k % 2) * 2, to, band);
      finish(static_cast<int>(k % 2) * 2 + 1, to + axis.band, band + 2);
    };
    int64_t behind = -1;
    for (int64_t k = first; k < std::min(last, axis.bands); ++k) {
      if constexpr (std::is_same_v<S, In>) {
        if (p_.ndim == 2 && is_in_pairs() && has_pair(axis, k)) {
          square<2>(rows_.base + 2 * k * stride, y + k * axis.y);
          continue;
        }
      }
      prefetch_for(axis, rows, base, stride, k + 1, y);
      make_split_rows(outer, rows, axis, base, stride, k, static_cast<int>(k % 2) * 2);
      if (behind >= 0) finish_both(behind);
      behind = k;
    }
    if (behind >= 0) finish_both(behind);
    for (int64_t k = std::max(first, axis.bands); k < last; ++k) clear_row(y + k * axis.y, 2);
  }

  void volume(int64_t k) {
    const Axis &first = p_.axis[0], &second = p_.axis[1];
    const int64_t to = y_ + k * first.y;
    if (k >= first.bands) {
      for (int64_t h = 0; h < second.grid; ++h) clear_row(to + h * second.y, 4);
      return;
    }
    if (is_in_pairs() && has_pair(first, k) && second.size % 2 == 0) return cubes(k, to);
    for (int64_t h = 0; h < second.size; ++h)
      make_rows(of_x_, rows_, first, rows_.base + h * rows_.stride[1], rows_.stride[0], k,
                frame_[0] + h * t_.line, frame_[1] + h * t_.line);
    const Rows<T> made{nullptr, {}, true};
    for (int high = 0; high < 2; ++high)
      image(of_frame_, made, static_cast<const T*>(frame_[high]), t_.line, 0, second.grid,
            to + high * first.band, 4 * high);
  }

  void cubes(int64_t k, int64_t to) const {
    const Axis& second = p_.axis[1];
    for (int64_t h = 0; h < second.bands; ++h)
      square<3>(rows_.base + 2 * k * rows_.stride[0] + 2 * h * rows_.stride[1], to + h * second.y);
    for (int64_t h = second.bands; h < second.grid; ++h) clear_row(to + h * second.y, 4);
  }

  const Params& p_;
  const Tiling& t_;
  const Axis& last_;
  const TwoTaps<T> two_taps_;
  OuterRows<T, In> of_x_;
  OuterRows<T, T> of_frame_;
  Mix<T, T> across_[4];  // along the last axis, from each of the split rows

  T *split_[4], *frame_[2], *line_[3], *staged_;

  // Of the strip: its coefficients [k0, k1) and the columns [c0, c1) that they are made of, the first of
  // which would be at `left`.
  int64_t k0_ = 0, k1_ = 0, left_ = 0, c0_ = 0, c1_ = 0;
  Pad pad_[2 * kMaxTaps];
  int pads_ = 0;
  int64_t copy_to_[2 * kMaxTaps], copy_from_[2 * kMaxTaps];  // pads that are one number of another place
  int copies_ = 0;
  int64_t extra_[2 * kMaxTaps];
  int extras_ = 0;
  Rows<In> rows_;
  int64_t y_ = 0;  // of its first coefficient
  T factor_[1 << wavelet::kMaxSpatial] = {};
};

template <class T, class In, class Out>
void run_units(const Params& p, T* scratch, const Team& team) {
  const Tiling tiling = tiling_of(p);
  const int64_t units = p.planes.count * tiling.strips * Analysis<T, In, Out>::rows(p);
  const int64_t parts = std::min<int64_t>(team.threads, units);
  each_part(team, parts, [&](int64_t part) {
    Analysis<T, In, Out> analysis(p, tiling, scratch + part * tiling.numel());
    analysis.run(units * part / parts, units * (part + 1) / parts);
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
    if (params.x_rows) {
      run_units<float, S, S>(params, memory, team);
    } else {
      run_units<float, float, S>(params, memory, team);
    }
  });
}

}  // namespace fastdiff::dwt
