// SPDX-License-Identifier: Apache-2.0
// norm_row.h on the CPU, for *_cpu.cpp files: a row goes through blocks in the first-level cache, and one
// that fits into a block is read from memory once. quantise_row() makes int8 of it.
#pragma once

#include <algorithm>
#include <limits>

#include "core/runs.h"
#include "quant/norm_row_math.h"
#include "quant/rounding.h"

namespace fastdiff::quant {
namespace {

inline constexpr int64_t kRowBlock =
    4096;  // elements; five such blocks of float32 are less than a second-level cache
static_assert(kRowBlock % kSumLanes == 0);

// A tensor's rows, block by block, in float32: where they are, or converted.
class WidenedRow {
 public:
  const float* block(const RowTensor& t, int64_t at, int64_t first, int64_t count) {
    const int64_t place = at + first * t.column;
    if (t.dtype == DType::f32 && t.column == 1) return static_cast<const float*>(t.data) + place;
    if (place != held_) load_run(t.data, t.dtype, place, t.column, count, block_);
    held_ = place;
    return block_;
  }

 private:
  int64_t held_ = std::numeric_limits<int64_t>::min();
  alignas(64) float block_[kRowBlock];
};

// The lanes of a sum over a row, which come in blocks of a multiple of kSumLanes, but for the last.
class LaneSums {
  using L = Lanes<float>;
  using V = L::V;

 public:
  LaneSums() {
    for (int l = 0; l < kSumLanes; l += L::width) L::store(lane_ + l, splat<V>(0.0f));
  }

  // lane[e % kSumLanes] = term(lane[e % kSumLanes], x[e]) for all e.
  template <class Term>
  void add_terms(const float* x, int64_t count, const Term& term) {
    constexpr int kTogether = 8, kSpan = kTogether * L::width;
    const int64_t whole = count / kSumLanes * kSumLanes;
    for (int base = 0; base < kSumLanes && whole > 0; base += kSpan) {
      V sum[kTogether];
      for (int r = 0; r < kTogether; ++r) sum[r] = L::load(lane_ + base + r * L::width);
      for (int64_t e = base; e < whole; e += kSumLanes)
#pragma GCC unroll 8
        for (int r = 0; r < kTogether; ++r) sum[r] = term(sum[r], L::load(x + e + r * L::width));
      for (int r = 0; r < kTogether; ++r) L::store(lane_ + base + r * L::width, sum[r]);
    }
    float* l = lane_;
    int64_t e = whole;
    for (; e + L::width <= count; e += L::width, l += L::width) L::store(l, term(L::load(l), L::load(x + e)));
    for (; e < count; ++e, ++l) *l = term(*l, x[e]);
  }

  float total() {
    V sum[kRegisters];
    for (int r = 0; r < kRegisters; ++r) sum[r] = L::load(lane_ + r * L::width);
#pragma GCC unroll 8
    for (int half = kRegisters / 2; half > 0; half /= 2)
      for (int r = 0; r < half; ++r) sum[r] = add(sum[r], sum[r + half]);
    return L::total(sum[0]);
  }

 private:
  static constexpr int kRegisters = kSumLanes / L::width;
  alignas(64) float lane_[kSumLanes];
};

// The largest word of magnitudes (see rounding.h).
inline uint32_t largest_magnitude(const float* x, int64_t count) {
  using L = Lanes<float>;
  using U = L::U;
  constexpr int kTogether = 4;
  U most[kTogether];
  for (U& m : most) m = splat<U>(uint32_t{0});
  int64_t e = 0;
  for (; e + kTogether * L::width <= count; e += kTogether * L::width)
#pragma GCC unroll 4
    for (int r = 0; r < kTogether; ++r)
      most[r] = larger(most[r], magnitude_of(L::load(x + e + r * L::width)));
  for (; e + L::width <= count; e += L::width) most[0] = larger(most[0], magnitude_of(L::load(x + e)));
  uint32_t one = largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
  for (; e < count; ++e) one = larger(one, magnitude_of(x[e]));
  return one;
}
// Of 16-bit floats, whose own words have the same order. A loop that compilers vectorise.
template <class S>
uint32_t largest_magnitude(const S* x, int64_t count) {
  uint16_t most = 0;
  for (int64_t e = 0; e < count; ++e) {
    const auto magnitude = static_cast<uint16_t>(x[e].bits & 0x7fffu);
    most = magnitude > most ? magnitude : most;
  }
  return magnitude_of(widen(S{most}));
}

class RowReader {
  using L = Lanes<float>;
  using V = L::V;

 public:
  explicit RowReader(const NormedRows& rows) : rows_(rows), columns_(rows.columns) {}

  const NormedRows& rows() const { return rows_; }

  void enter(int64_t row) {
    x_at_ = rows_.at(rows_.x, row);
    if (rows_.scale_by.data != nullptr) scale_at_ = rows_.at(rows_.scale_by, row);
    if (rows_.shift.data != nullptr) shift_at_ = rows_.at(rows_.shift, row);
    made_ = false;
    if (rows_.norm == Norm::none) return;
    const float count = static_cast<float>(columns_);
    statistics_.mean = 0;
    if (rows_.norm == Norm::layer) statistics_.mean = sum([](auto s, auto v) { return add(s, v); }) / count;
    const float mean = statistics_.mean;
    const float squares =
        sum([mean](auto s, auto v) { return square_of_difference(v, splat<decltype(v)>(mean), s); });
    statistics_.rstd = rstd_of(squares, columns_, rows_.eps);
  }

  // The row that is not changed on the way, where it is in memory; null: it has to be converted.
  template <class S>
  const S* as_it_is() const {
    return rows_.x.column == 1 || columns_ == 1 ? static_cast<const S*>(rows_.x.data) + x_at_ : nullptr;
  }

  // The largest word of the row's magnitudes.
  uint32_t magnitude() {
    uint32_t most = 0;
    each_block([&](const float* y, int64_t, int64_t count) {
      most = larger(most, y == y_ ? magnitude_ : largest_magnitude(y, count));
    });
    return most;
  }

  // body(y, first, count) for every block of the row.
  template <class Body>
  void each_block(const Body& body) {
    for (int64_t first = 0; first < columns_; first += kRowBlock) {
      const int64_t count = std::min(kRowBlock, columns_ - first);
      body(block(first, count), first, count);
    }
  }

 private:
  template <class Term>
  float sum(const Term& term) {
    LaneSums sums;
    for (int64_t first = 0; first < columns_; first += kRowBlock) {
      const int64_t count = std::min(kRowBlock, columns_ - first);
      sums.add_terms(x_.block(rows_.x, x_at_, first, count), count, term);
    }
    return sums.total();
  }

  const float* block(int64_t first, int64_t count) {
    const float* x = x_.block(rows_.x, x_at_, first, count);
    if (rows_.is_plain()) return x;
    if (made_ && columns_ <= kRowBlock) return y_;
    made_ = true;
    const auto other = [&](WidenedRow& row, const RowTensor& t, int64_t at) {
      return t.data == nullptr ? nullptr : row.block(t, at, first, count);
    };
    const float* const w = other(weight_, rows_.weight, 0);
    const float* const b = other(bias_, rows_.bias, 0);
    const float* const m = other(scale_, rows_.scale_by, scale_at_);
    const float* const t = other(shift_, rows_.shift, shift_at_);
    using U = L::U;
    const Changes changes = changes_of(rows_);
    const Statistics s = statistics_;
    const V mean = splat<V>(s.mean), rstd = splat<V>(s.rstd);
    U most = splat<U>(uint32_t{0});
    int64_t e = 0;
    for (; e + L::width <= count; e += L::width) {
      const V y = modulated<V>(
          changes, mean, rstd, L::load(x + e), [&] { return L::load(w + e); }, [&] { return L::load(b + e); },
          [&] { return L::load(m + e); }, [&] { return L::load(t + e); });
      most = larger(most, magnitude_of(y));
      L::store(y_ + e, y);
    }
    magnitude_ = largest(most);
    for (; e < count; ++e) {
      y_[e] = modulated<float>(
          changes, s.mean, s.rstd, x[e], [&] { return w[e]; }, [&] { return b[e]; }, [&] { return m[e]; },
          [&] { return t[e]; });
      magnitude_ = larger(magnitude_, magnitude_of(y_[e]));
    }
    return y_;
  }

  const NormedRows& rows_;
  const int64_t columns_;
  int64_t x_at_ = 0, scale_at_ = 0, shift_at_ = 0;
  Statistics statistics_;
  bool made_ = false;       // y_ is the row, if it is one block
  uint32_t magnitude_ = 0;  // the largest word of y_
  WidenedRow x_, weight_, bias_, scale_, shift_;
  alignas(64) float y_[kRowBlock];
};

// ---- int8 ------------------------------------------------------------------------------------------

// q[e * stride] = element(x[e]), rounded, whole registers first.
template <class S, class Element>
void store_quantised(const S* x, int64_t count, int8_t* q, int64_t stride, const Element& element) {
  using L = Lanes<float>;
  int64_t e = 0;
  if (stride == 1)
    for (; e + L::width <= count; e += L::width) Int8Lanes::store(q + e, element(L::load(x + e)));
  for (; e < count; ++e) q[e * stride] = to_int8(element(widened<float>(x[e])));
}

// A row of x, any dtype and strides, normed and modulated or not, to int8 with a scale of its own: symmetric,
// see rounding.h. Returns the scale.
inline float quantise_row(RowReader& reader, int64_t row, int8_t* q, int64_t stride) {
  const NormedRows& rows = reader.rows();
  reader.enter(row);
  const auto quantise = [&](const auto* x, int64_t first, int64_t count, const SymmetricScale& s) {
    store_quantised(x, count, q + first * stride, stride,
                    [&](auto v) { return mul(v, splat<decltype(v)>(s.inverse)); });
  };
  const auto zeros = [&] {
    for (int64_t e = 0; e < rows.columns; ++e) q[e * stride] = 0;
  };
  if (rows.is_plain() && rows.x.dtype != DType::f64 && reader.as_it_is<float>() != nullptr) {
    float scale = 0;
    with_storage<float>(rows.x.dtype, [&]<class S>(S) {
      const S* const x = reader.as_it_is<S>();
      const SymmetricScale s = scale_of(largest_magnitude(x, rows.columns));
      s.is_number ? quantise(x, 0, rows.columns, s) : zeros();
      scale = s.scale;
    });
    return scale;
  }
  const SymmetricScale s = scale_of(reader.magnitude());
  if (s.is_number) {
    reader.each_block([&](const float* y, int64_t first, int64_t count) { quantise(y, first, count, s); });
  } else {
    zeros();
  }
  return s.scale;
}

}  // namespace
}  // namespace fastdiff::quant
