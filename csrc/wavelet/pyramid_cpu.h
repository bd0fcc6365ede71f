// SPDX-License-Identifier: Apache-2.0
// What both directions of a pyramid do on the CPU: strips of columns, whose last coarse rows are kept in the
// first-level cache, expanded along the row already, while the fine rows that they give go out.
#pragma once

#include <algorithm>

#include "core/runs.h"
#include "core/team.h"
#include "wavelet/pyramid.h"

namespace fastdiff::pyramid {
namespace {

constexpr int kStrip = 128;  // coarse columns
constexpr int kLead = 4;     // of a line, before the strip's first column: more than any tap reaches
constexpr int kLine = kStrip + 32;
constexpr int kRing = 8;                     // expanded rows that are kept, a power of two
constexpr int64_t kRowsOfPart = 32;          // coarse rows
constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread

// Columns [begin, end) of a coarse image of so many columns, `first` to `last` with what up reads of their
// neighbours; `fine` columns has the other image.
struct Strip {
  int64_t begin, end, first, last, coarse, fine;

  Strip(int64_t number, int64_t fine_width) : coarse(coarse_size(fine_width)), fine(fine_width) {
    begin = number * kStrip;
    end = std::min(begin + kStrip, coarse);
    first = std::max<int64_t>(0, begin - kUpReach);
    last = std::min(coarse, end + kUpReach);
  }
  int at(int64_t column) const { return static_cast<int>(column - begin) + kLead; }  // in a line
  int64_t fine_begin() const { return 2 * begin; }
  int fine_count() const { return static_cast<int>(std::min(2 * end, fine) - 2 * begin); }
};

inline int64_t strips_of(const Level& level) {
  return (coarse_size(level.width) + kStrip - 1) / kStrip;
}

inline int64_t plane_offset(const Level& level, const Image& image, int64_t plane) {
  int64_t offset = 0;
  for (int d = 0; d < level.dims; ++d) {
    offset += plane % level.size[d] * image.plane[d];
    plane /= level.size[d];
  }
  return offset;
}

// body(S{}) with the storage type of an image that has the arithmetic type T.
template <class T, class Body>
void with_image(const Image& image, const Body& body) {
  with_storage<T>(image.dtype, body);
}

// y[e] = f(x[e], u(e)) for a run of a row, from and to images. u: of lanes, where asked for a V, or of one
// element.
template <class T, class U, class F>
void write_row(const Image& x, int64_t x_offset, const Image& y, int64_t y_offset, const U& u, int count,
               const F& f) {
  using L = Lanes<T>;
  using V = typename L::V;
  alignas(64) T gathered[2 * kStrip];
  with_image<T>(y, [&]<class Y>(Y) {
    const auto run = [&](const auto* from) {
      if (y.column != 1) {
        for (int e = 0; e < count; ++e)
          store_as<T>(y.data, y.dtype, y_offset + e * y.column, f(widened<T>(from[e]), u(T{}, e)));
        return;
      }
      Y* const to = static_cast<Y*>(y.data) + y_offset;
      int e = 0;
      for (; e + L::width <= count; e += L::width) L::store(to + e, f(L::load(from + e), u(V{}, e)));
      for (; e < count; ++e) store_as<T>(to, y.dtype, e, f(widened<T>(from[e]), u(T{}, e)));
    };
    if (x.column == 1) {
      with_image<T>(x, [&]<class X>(X) { run(static_cast<const X*>(x.data) + x_offset); });
    } else {
      load_run(x.data, x.dtype, x_offset, x.column, count, gathered);
      run(static_cast<const T*>(gathered));
    }
  });
}

// The sum of a few lines, whole registers or one element of it.
template <class T, int kCount>
struct Mixed {
  using V = typename Lanes<T>::V;
  V lanes[kCount];
  T weight[kCount];
  const T* line[kCount];

  Mixed(const T* weights, const T* const* lines) {
    for (int k = 0; k < kCount; ++k) {
      lanes[k] = splat<V>(weights[k]);
      weight[k] = weights[k];
      line[k] = lines[k];
    }
  }
  template <class W>
  W operator()(W, int e) const {
    if constexpr (sizeof(W) == sizeof(T)) {
      return sum_of_taps<kCount, T>([&](int k) { return weight[k]; }, [&](int k) { return line[k][e]; });
    } else {
      return sum_of_taps<kCount, V>([&](int k) { return lanes[k]; },
                                    [&](int k) { return Lanes<T>::load(line[k] + e); });
    }
  }
};

// The coarse rows of a strip, and the fine rows that they give.
template <class T>
class Expansion {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  explicit Expansion(const Level& level) : height_(coarse_size(level.height)) {
    for (auto& line : line_) std::fill_n(line, kLine, T(0));
  }

  void begin(const Strip& strip) {
    const int64_t fine = 2 * strip.coarse, end = strip.fine_begin() + strip.fine_count();
    end_count_ = 0;
    const auto add = [&](int64_t column) {
      if (column >= strip.fine_begin() && column < end)
        ends_[end_count_++] = {column, up_weights<T>(column, strip.coarse)};
    };
    for (int64_t column = 0; column < std::min<int64_t>(kUpEnd, fine); ++column) add(column);
    for (int64_t column = std::max<int64_t>(kUpEnd, fine - kUpEnd); column < fine; ++column) add(column);
  }

  // Where columns [strip.first, strip.last) of a coarse row belong, from strip.at(strip.first) on, before it
  // is expanded. Not at once before: loads across the ends of stores that are still on their way wait for
  // them.
  T* line(int64_t row) { return line_[row % 2]; }

  void expand(int64_t row, const Strip& strip) {
    const T* const line = line_[row % 2];
    T* const fine = ring_[row % kRing];
    V weight[kUpTaps];
    for (int k = 0; k < kUpTaps; ++k) weight[k] = splat<V>(up_weight<T>(false, k));
    for (int j = 0; j < static_cast<int>(strip.end - strip.begin); j += L::width) {
      V tap[kUpTaps + 1];
      for (int k = 0; k <= kUpTaps; ++k) tap[k] = L::load(line + kLead + j - kUpReach + k);
      const V even = sum_of_taps<kUpTaps, V>([&](int k) { return weight[k]; }, [&](int k) { return tap[k]; });
      const V odd = sum_of_taps<kUpTaps, V>([&](int k) { return weight[kUpTaps - 1 - k]; },
                                            [&](int k) { return tap[k + 1]; });
      V a, b;
      interleave(even, odd, a, b);
      L::store(fine + 2 * j, a);
      L::store(fine + 2 * j + L::width, b);
    }
    for (int n = 0; n < end_count_; ++n) {
      const auto& [column, weights] = ends_[n];
      const T* const taps = line + strip.at(up_first(column));
      fine[column - strip.fine_begin()] = sum_of_present(weights, [&](int k) { return taps[k]; });
    }
  }

  // with(u): u is fine row `row` as write_row takes it. Coarse rows row / 2 - 2 ... row / 2 + 2 have been
  // expanded, as far as there are any.
  template <class With>
  void fine_row(int64_t row, const With& with) const {
    const UpWeights<T> w = up_weights<T>(row, height_);
    const int64_t first = up_first(row);
    T weight[kUpTaps];
    const T* line[kUpTaps];
    int count = 0;
    for (int k = 0; k < kUpTaps; ++k) {
      if (w.weight[k] == T(0)) continue;
      weight[count] = w.weight[k];
      line[count++] = ring_[(first + k) % kRing];
    }
    switch (count) {
      case 1:
        return with(Mixed<T, 1>(weight, line));
      case 2:
        return with(Mixed<T, 2>(weight, line));
      case 3:
        return with(Mixed<T, 3>(weight, line));
      default:
        return with(Mixed<T, 4>(weight, line));
    }
  }

 private:
  struct End {
    int64_t column;
    UpWeights<T> weights;
  };

  const int64_t height_;  // coarse rows
  End ends_[2 * kUpEnd];
  int end_count_ = 0;
  alignas(64) T line_[2][kLine];
  alignas(64) T ring_[kRing][2 * kLine];
};

// Shares out all levels of a pyramid. run_rows(level, plane, begin, end): coarse rows [begin, end) of a plane
// and the fine rows that belong to them. ascending: from the finest level to the coarsest.
template <class RunRows>
void share_out(const Pyramid& p, const Team& team, bool ascending, const RunRows& run_rows) {
  const auto level_of = [&](int n) -> const Level& { return p.level[ascending ? n : p.levels - 1 - n]; };
  const int threads = p.numel() < kSerialNumel ? 1 : team.threads;
  if (threads == 1 || p.planes >= 4 * threads) {  // a plane is taken through all levels while it is cached
    const int64_t parts = threads == 1 ? 1 : std::min<int64_t>(p.planes, 4 * threads);
    return each_part(threads == 1 ? kAlone : team, parts, [&](int64_t part) {
      for (int64_t plane = p.planes * part / parts; plane < p.planes * (part + 1) / parts; ++plane)
        for (int n = 0; n < p.levels; ++n)
          run_rows(level_of(n), plane, int64_t{0}, coarse_size(level_of(n).height));
    });
  }
  for (int n = 0; n < p.levels; ++n) {
    const Level& level = level_of(n);
    const int64_t rows = coarse_size(level.height), cuts = (rows + kRowsOfPart - 1) / kRowsOfPart;
    each_part(team, p.planes * cuts, [&](int64_t part) {
      const int64_t begin = part % cuts * kRowsOfPart;
      run_rows(level, part / cuts, begin, std::min(rows, begin + kRowsOfPart));
    });
  }
}

}  // namespace
}  // namespace fastdiff::pyramid
