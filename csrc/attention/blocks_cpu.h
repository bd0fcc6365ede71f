// SPDX-License-Identifier: Apache-2.0
// Blocks of tokens into and out of the memory of a thread.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention/bias.h"
#include "attention/rooms_cpu.h"
#include "attention/strip.h"
#include "core/runs.h"

namespace fastdiff::attention {
namespace {

// body(registers) with how many registers a strip of a block of queries has: kMost, or 2 or 1 if it fills no
// more.
template <class T, int kMost = kMostRegisters, class Body>
void with_registers(int queries, const Body& body) {
  constexpr int w = Lanes<T>::width;
  if (queries <= w) return body(std::integral_constant<int, 1>{});
  if constexpr (kMost == 4)
    if (queries > 2 * w) return body(std::integral_constant<int, 4>{});
  body(std::integral_constant<int, 2>{});
}

// The rows of `count` tokens, [count][dim]: where they are, if they lie there like that, else converted to
// `memory`.
template <class T>
const T* rows_of(const Heads& t, const Rows& rows, int count, int dim, T* memory) {
  const bool as_is = rows.index == nullptr && t.element == 1 && t.row == dim &&
                     (t.dtype == DType::f64) == (sizeof(T) == 8) &&
                     (t.dtype == DType::f64 || t.dtype == DType::f32);
  if (as_is) return static_cast<const T*>(t.data) + rows.first;
  for (int n = 0; n < count; ++n)
    load_run<T>(t.data, t.dtype, rows.at(n), t.element, dim, memory + int64_t{n} * dim);
  return memory;
}

// `count` tokens, times a factor, in strips [dim][lanes]; zeros in the last one's rest.
template <class T>
void load_transposed(const Heads& t, const Rows& rows, int count, int dim, T factor, int lanes, T* strips) {
  T row[kMaxHeadDim];
  const int whole = (count + lanes - 1) / lanes * lanes;
  for (int n = 0; n < whole; ++n) {
    T* const to = strips + int64_t{n / lanes} * lanes * dim + n % lanes;
    if (n < count) {
      load_run<T>(t.data, t.dtype, rows.at(n), t.element, dim, row);
      for (int d = 0; d < dim; ++d) to[int64_t{d} * lanes] = row[d] * factor;
    } else {
      for (int d = 0; d < dim; ++d) to[int64_t{d} * lanes] = T(0);
    }
  }
}

// One row: value(d) for each d, rounded.
template <class Value>
void store_row(const Heads& t, int64_t at, int dim, const Value& value) {
  switch (t.dtype) {
    case DType::f16:
      for (int d = 0; d < dim; ++d)
        static_cast<half_t*>(t.data)[at + d * t.element] = to_half(static_cast<float>(value(d)));
      return;
    case DType::bf16:
      for (int d = 0; d < dim; ++d)
        static_cast<bfloat16_t*>(t.data)[at + d * t.element] = to_bfloat16(static_cast<float>(value(d)));
      return;
    case DType::f32:
      for (int d = 0; d < dim; ++d)
        static_cast<float*>(t.data)[at + d * t.element] = static_cast<float>(value(d));
      return;
    default:
      for (int d = 0; d < dim; ++d) store_as(t.data, t.dtype, at + d * t.element, value(d));
  }
}

// What is added to the scores of a head, a block of queries with a block of keys at a time.
template <class T>
class BlockBias {
 public:
  // `memory`: as bias_numel() says.
  BlockBias(const Plan& plan, const PairBias& from, T* memory)
      : plan_(plan), from_(from), table_(memory), memory_(memory + rounded_up(from.entries, kMostWidth)) {}

  void enter_head(int64_t b, int64_t h) {
    if (b == sample_ && h == head_) return;
    sample_ = b;
    head_ = h;
    for (int64_t n = 0; n < from_.entries; ++n)
      table_[n] = bias_of<T>(from_, from_.at(b, h, 0) + n * from_.key);
  }

  // The queries from `query` on with the keys from `key` on.
  void enter_block(int64_t entry, int64_t query, int64_t key, int keys) {
    query_ = query;
    key_ = key;
    keys_ = keys;
    bias_ = Bias<T>{};
    bias_.mask = plan_.bits_of(entry);
    bias_.words = plan_.words;
    if (from_.data != nullptr) bias_.data = memory_;
    if (from_.entries > 0)
      for (int j = 0; j < keys; ++j) k_codes_[j] = from_.k_code.of(sample_, key + j);
    if (from_.is_of_keys())
      for (int j = 0; j < keys; ++j)
        memory_[j] = bias_of<T>(from_, from_.at(sample_, head_, 0) + (key + j) * from_.key);
  }

  // For the queries [first, first + lanes) of the block, of which it has `queries`.
  const Bias<T>& of_strip(int first, int lanes, int queries) {
    bias_.first = first;
    if (!from_.is_of_pairs()) return bias_;
    bias_.key = lanes;
    const int count = std::min(lanes, queries - first);
    if (from_.entries > 0)
      for (int n = 0; n < count; ++n) q_codes_[n] = from_.q_code.of(sample_, query_ + first + n);
    for (int j = 0; j < keys_; ++j) {
      T* const row = memory_ + j * lanes;
      if (from_.entries > 0) {
        for (int n = 0; n < count; ++n) row[n] = table_[q_codes_[n] - k_codes_[j]];
      } else {
        const int64_t at = from_.at(sample_, head_, query_ + first) + (key_ + j) * from_.key;
        for (int n = 0; n < count; ++n) row[n] = bias_of<T>(from_, at + n * from_.query);
      }
      std::fill(row + count, row + lanes, T(0));
    }
    return bias_;
  }

  // sums[entry] += ds[key][query] of the block's pairs, its rows `across` apart.
  void add_to_table(const T* ds, int64_t across, int queries, T* sums) const {
    int64_t codes[kMaxBlock];
    for (int q = 0; q < queries; ++q) codes[q] = from_.q_code.of(sample_, query_ + q);
    for (int j = 0; j < keys_; ++j)
      for (int q = 0; q < queries; ++q) {
        T& sum = sums[codes[q] - k_codes_[j]];
        sum = sum + ds[j * across + q];
      }
  }

 private:
  const Plan& plan_;
  const PairBias& from_;
  T *const table_, *const memory_;  // [entries] in units of log 2; of a block, as Bias has it
  int64_t sample_ = -1, head_ = -1, query_ = 0, key_ = 0;
  int keys_ = 0;
  int64_t q_codes_[kMostLanes], k_codes_[kMaxBlock];
  Bias<T> bias_;
};

}  // namespace
}  // namespace fastdiff::attention
