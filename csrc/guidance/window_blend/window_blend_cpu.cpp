// SPDX-License-Identifier: Apache-2.0
// window_blend on the CPU, compiled once per ISA.
//
// A block of sums stays in the first-level cache while the views over it are added one after the other, each
// row of a view as one run of memory. (Sums in registers would have to stop at every edge of a view, and with
// a stride of 8 pixels those are closer together than a register is wide.) The weights are summed once for
// all planes.
#include <algorithm>

#include "core/runs.h"
#include "guidance/window_blend/window_blend_math.h"

namespace fastdiff::window_blend {
namespace {

constexpr int kRows = 8;
constexpr int kColumns = 256;  // elements
constexpr int kCacheLine = 64;
// Views that lie further away than the second-level caches are asked for one plane ahead: their runs are too
// short for the hardware to see them coming. Measured: 1.2 to 1.5 times as fast at 6 and 13 MB; nearer, no
// gain.
constexpr int64_t kPrefetchBytes = int64_t{6} << 20;

// Rows [top, top + rows) of the image, elements [left, left + columns) of each: pixel times group.
struct Block {
  int64_t top, left;
  int rows, columns;
};

// What one view gives to a block.
struct Share {
  int64_t view, y, x;            // its first element in the view
  int top, left, rows, columns;  // where in the block
};

template <class T>
class Blender {
  using L = Lanes<T>;

 public:
  explicit Blender(const Params& p)
      : p_(p), prefetches_(p.numel_read() * size_of(p.dtype) > kPrefetchBytes) {}

  // Planes [first, last) of a tile.
  void tile(int64_t number, int64_t first, int64_t last) {
    const Tile tile = p_.table.tile;
    const int64_t row = number / p_.table.across, column = number % p_.table.across;
    const int64_t bottom = std::min((row + 1) * tile.rows, p_.height);
    const int64_t right = std::min((column + 1) * tile.columns, p_.width) * p_.group;
    begin_ = p_.table.place + kPlaceNumbers * p_.table.first[number];
    end_ = p_.table.place + kPlaceNumbers * p_.table.first[number + 1];
    for (int64_t top = row * tile.rows; top < bottom; top += kRows)
      for (int64_t left = column * tile.columns * p_.group; left < right; left += kColumns) {
        const Block block{top, left, static_cast<int>(std::min<int64_t>(kRows, bottom - top)),
                          static_cast<int>(std::min<int64_t>(kColumns, right - left))};
        add_weights(block);
        for (int64_t plane = first; plane < last; ++plane) blend(block, plane);
      }
  }

 private:
  template <class Body>
  void each_share(const Block& block, const Body& body) const {
    const int64_t columns = p_.view_width * p_.group;
    for (const int64_t* place = begin_; place < end_; place += kPlaceNumbers) {
      const int64_t y0 = place[1], x0 = place[2] * p_.group;
      const int64_t top = std::max(y0, block.top),
                    bottom = std::min(y0 + p_.view_height, block.top + block.rows);
      const int64_t left = std::max(x0, block.left),
                    right = std::min(x0 + columns, block.left + block.columns);
      if (top >= bottom || left >= right) continue;
      body(Share{place[0], top - y0, left - x0, static_cast<int>(top - block.top),
                 static_cast<int>(left - block.left), static_cast<int>(bottom - top),
                 static_cast<int>(right - left)});
    }
  }

  // ---- weights

  T view_weight(int64_t view) const {
    return p_.weighting == Weighting::none ? T(1) : weight_at<T>(p_.weights, view, 0, 0);
  }

  // The weights of row `row` of a share, one for each element.
  const T* weight_row(const Share& share, int row) {
    const Weights& w = p_.weights;
    const int64_t start = share.view * w.view + (share.y + row) * w.row;
    if (p_.group == 1) {
      const bool direct = w.column == 1 && size_of(w.dtype) == sizeof(T);
      if (direct) return static_cast<const T*>(w.data) + start + share.x;
      load_run(w.data, w.dtype, start + share.x * w.column, w.column, share.columns, weight_row_);
      return weight_row_;
    }
    int64_t pixel = share.x / p_.group, channel = share.x % p_.group;
    T weight = load_as<T>(w.data, w.dtype, start + pixel * w.column);
    for (int e = 0; e < share.columns; ++e, ++channel) {
      if (channel == p_.group) {
        channel = 0;
        weight = load_as<T>(w.data, w.dtype, start + ++pixel * w.column);
      }
      weight_row_[e] = weight;
    }
    return weight_row_;
  }

  void add_weights(const Block& block) {
    std::fill_n(weight_sum_, kColumns * block.rows, T(0));
    each_share(block, [&](const Share& share) {
      const bool per_pixel = p_.weighting == Weighting::per_pixel;
      const T weight = per_pixel ? T(0) : view_weight(share.view);
      for (int row = 0; row < share.rows; ++row) {
        T* sum = weight_sum_ + (share.top + row) * kColumns + share.left;
        if (per_pixel) {
          add_row(sum, weight_row(share, row), share.columns);
        } else {
          add_number(sum, weight, share.columns);
        }
      }
    });
  }

  // ---- views

  int64_t plane_offset(const Image& image, int64_t plane) const {
    int64_t offset = 0;
    for (int d = 0; d < p_.dims; ++d) {
      offset += plane % p_.size[d] * image.plane[d];
      plane /= p_.size[d];
    }
    return offset;
  }

  void blend(const Block& block, int64_t plane) {
    std::fill_n(sum_, kColumns * block.rows, T(0));
    with_storage<T>(p_.dtype, [&]<class S>(S) {
      const int64_t offset = plane_offset(p_.x, plane);
      const bool prefetches = prefetches_ && plane + 1 < p_.planes;
      const int64_t ahead = prefetches ? plane_offset(p_.x, plane + 1) - offset : 0;
      each_share(block, [&](const Share& share) { add_share<S>(share, offset, ahead); });
      const int64_t to = plane_offset(p_.y, plane) + block.top * p_.y.row;
      for (int row = 0; row < block.rows; ++row)
        store_row<S>(sum_ + row * kColumns, weight_sum_ + row * kColumns, to + row * p_.y.row, block);
    });
  }

  template <class S>
  void add_share(const Share& share, int64_t plane, int64_t ahead) {
    const Image& x = p_.x;
    const bool dense = x.column == p_.group;
    const T weight = p_.weighting == Weighting::per_pixel ? T(1) : view_weight(share.view);
    if (weight == T(0)) return;
    int64_t at = plane + share.view * x.view + share.y * x.row + share.x * (dense ? 1 : x.column);
    T* sum = sum_ + share.top * kColumns + share.left;
    for (int row = 0; row < share.rows; ++row, at += x.row, sum += kColumns) {
      if (dense) {
        const S* from = static_cast<const S*>(x.data) + at;
        for (int e = 0; ahead != 0 && e < share.columns; e += kCacheLine / static_cast<int>(sizeof(S)))
          __builtin_prefetch(from + ahead + e);
        add_view_row(sum, from, weight, share, row);
      } else {
        load_run(x.data, p_.dtype, at, x.column, share.columns, view_row_);
        add_view_row(sum, view_row_, weight, share, row);
      }
    }
  }

  template <class S>
  void add_view_row(T* sum, const S* x, T weight, const Share& share, int row) {
    switch (p_.weighting) {
      case Weighting::none:
        return add_row(sum, x, share.columns);
      case Weighting::per_view:
        return add_scaled_row(sum, x, weight, share.columns);
      case Weighting::per_pixel:
        return add_weighted_row(sum, x, weight_row(share, row), share.columns);
    }
  }

  template <class S>
  void store_row(const T* sum, const T* weight, int64_t row, const Block& block) const {
    const Image& y = p_.y;
    int e = 0;
    if (y.column == p_.group) {
      S* to = static_cast<S*>(y.data) + row + block.left;
      for (; e + L::width <= block.columns; e += L::width)
        L::store(to + e, mean(L::load(sum + e), L::load(weight + e)));
      for (; e < block.columns; ++e) store_as<T>(to, p_.dtype, e, mean(sum[e], weight[e]));
    } else {
      for (; e < block.columns; ++e)
        store_as<T>(y.data, p_.dtype, row + (block.left + e) * y.column, mean(sum[e], weight[e]));
    }
  }

  // ---- rows

  static T at(const float* x, int e) { return static_cast<T>(x[e]); }
  static T at(const double* x, int e) { return static_cast<T>(x[e]); }
  template <class S>
  static T at(const S* x, int e) {
    return static_cast<T>(widen(x[e]));
  }

  static void add_number(T* sum, T number, int count) {
    int e = 0;
    for (; e + L::width <= count; e += L::width)
      L::store(sum + e, plus(L::load(sum + e), splat<typename L::V>(number)));
    for (; e < count; ++e) sum[e] = plus(sum[e], number);
  }

  template <class S>
  static void add_row(T* sum, const S* x, int count) {
    int e = 0;
    for (; e + L::width <= count; e += L::width) L::store(sum + e, plus(L::load(sum + e), L::load(x + e)));
    for (; e < count; ++e) sum[e] = plus(sum[e], at(x, e));
  }

  template <class S>
  static void add_scaled_row(T* sum, const S* x, T weight, int count) {
    int e = 0;
    for (; e + L::width <= count; e += L::width)
      L::store(sum + e, fma_(splat<typename L::V>(weight), L::load(x + e), L::load(sum + e)));
    for (; e < count; ++e) sum[e] = fma_(weight, at(x, e), sum[e]);
  }

  template <class S>
  static void add_weighted_row(T* sum, const S* x, const T* weight, int count) {
    int e = 0;
    for (; e + L::width <= count; e += L::width)
      L::store(sum + e, plus_weighted(L::load(sum + e), L::load(weight + e), L::load(x + e)));
    for (; e < count; ++e) sum[e] = plus_weighted(sum[e], weight[e], at(x, e));
  }

  const Params& p_;
  const bool prefetches_;
  const int64_t *begin_ = nullptr, *end_ = nullptr;  // the list of the tile
  alignas(64) T sum_[kRows * kColumns];
  alignas(64) T weight_sum_[kRows * kColumns];
  alignas(64) T view_row_[kColumns];
  alignas(64) T weight_row_[kColumns];
};

template <class T>
void run_units(const Params& p, int64_t begin, int64_t end) {
  Blender<T> blender(p);
  while (begin < end) {
    const int64_t tile = begin / p.planes, first = begin % p.planes;
    const int64_t last = std::min(p.planes, first + end - begin);
    blender.tile(tile, first, last);
    begin += last - first;
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, int64_t begin, int64_t end) {
  if (params.dtype == DType::f64) {
    run_units<double>(params, begin, end);
  } else {
    run_units<float>(params, begin, end);
  }
}

}  // namespace fastdiff::window_blend
