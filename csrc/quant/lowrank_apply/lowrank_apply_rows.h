// SPDX-License-Identifier: Apache-2.0
// What all instruction sets do with rows outside of the two products: where they are, the gates of their
// samples, and what becomes of a product before it is stored.
#pragma once

#include <algorithm>

#include "quant/lowrank_apply/lowrank_apply_math.h"
#include "quant/rows_cpu.h"

namespace fastdiff::lowrank_apply {
namespace {

constexpr int64_t kSerial = 1 << 18;  // fewer multiplications are left to one thread
constexpr int64_t kPartsPerThread = 4;

inline const Team& team_for(const Params& p, const Team& team) {
  return p.rows() * (p.inputs + p.outputs) * p.rank < kSerial ? kAlone : team;
}

// make() gives a worker, one for each of some parts; body(worker, 0) ... body(worker, items - 1).
template <class Make, class Body>
void each_item(const Team& team, int64_t items, const Make& make, const Body& body) {
  const int64_t parts = std::min<int64_t>(items, team.threads == 1 ? 1 : kPartsPerThread * team.threads);
  each_part(team, parts, [&](int64_t part) {
    auto worker = make();
    for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n) body(worker, n);
  });
}

// Up to kRows rows, up to kWidth columns of y at a time.
template <class T, int kRows, int kWidth>
class RowBlock {
 public:
  explicit RowBlock(const Params& p) : p_(p), p_row_(rounded_up(p.rank, kPanel)) {}

  // The rows that the next calls are about.
  void enter(int64_t row, int rows) {
    rows_ = rows;
    for (int n = 0; n < rows; ++n) {
      const int64_t b = (row + n) / p_.rows_of_sample, m = (row + n) % p_.rows_of_sample;
      sample_[n] = b;
      x_at_[n] = row_at(p_, p_.x, b, m);
      base_at_[n] = row_at(p_, p_.base, b, m);
      y_at_[n] = row_at(p_, p_.y, b, m);
      if (p_.a.data != nullptr) a_[n] = number<T>(p_.a, b, 0);
      b_[n] = p_.b.data != nullptr ? number<T>(p_.b, b, 0) : T(1);
    }
  }

  // Sums to p: offset and gates of their samples.
  void gate(T* sums) {
    if (p_.offset.data == nullptr && p_.gates.data == nullptr) return;
    for (int64_t j = 0; j < p_.rank; j += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, p_.rank - j));
      for (int n = 0; n < rows_; ++n) {
        if (n == 0 || sample_[n] != sample_[n - 1]) {
          load_numbers(p_.offset, sample_[n], j, count, offset_);
          load_numbers(p_.gates, sample_[n], j, count, gates_);
        }
        T* const sum = sums + n * p_row_ + j;
        if (p_.offset.data != nullptr)
          for (int i = 0; i < count; ++i) sum[i] = sum[i] + offset_[i];
        if (p_.gates.data != nullptr)
          for (int i = 0; i < count; ++i) sum[i] = gates_[i] * sum[i];
      }
    }
  }

 protected:
  // Of columns from `column` on, with the products of p and U in y_.
  void finish(int64_t column, int columns) {
    load_numbers(p_.mu, 0, column, columns, mu_);
    for (int n = 0; n < rows_; ++n) finish(n, column, columns, y_[n]);
  }

  const Params& p_;
  const int64_t p_row_;
  int rows_ = 0;
  int64_t x_at_[kRows];
  alignas(64) T y_[kRows][kWidth];

 private:
  static void load_numbers(const Numbers& numbers, int64_t b, int64_t first, int count, T* to) {
    if (numbers.data != nullptr)
      load_run(numbers.data, numbers.dtype, b * numbers.sample + first * numbers.element, numbers.element,
               count, to);
  }

  void finish(int n, int64_t column, int columns, T* y) {
    if (p_.mu.data != nullptr)
      for (int i = 0; i < columns; ++i) y[i] = fma_(b_[n], mu_[i], y[i]);
    if (p_.base.at.data != nullptr) {
      load(p_.base, base_at_[n], column, columns);
      for (int i = 0; i < columns; ++i) y[i] = y[i] + other_[i];
    }
    if (p_.a.data != nullptr) {
      load(p_.x, x_at_[n], column, columns);
      for (int i = 0; i < columns; ++i) y[i] = fma_(a_[n], other_[i], y[i]);
    }
    quant::store_run(p_.y.at.data, p_.y.at.dtype, y_at_[n] + column * p_.y.column, p_.y.column, columns, y);
  }

  void load(const Rows& rows, int64_t at, int64_t column, int columns) {
    load_run(rows.at.data, rows.at.dtype, at + column * rows.column, rows.column, columns, other_);
  }

  int64_t sample_[kRows], base_at_[kRows], y_at_[kRows];
  T a_[kRows], b_[kRows];
  alignas(64) T offset_[kChunk], gates_[kChunk], mu_[kWidth], other_[kWidth];
};

}  // namespace
}  // namespace fastdiff::lowrank_apply
