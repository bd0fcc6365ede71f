// SPDX-License-Identifier: Apache-2.0
// Blocks of tokens into and out of the memory of a thread.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention/bias.h"
#include "attention/strip.h"
#include "core/runs.h"

namespace fastdiff::attention {
namespace {

// body(registers) with how many registers a strip of a block of queries has: no more than it can fill.
template <class T, class Body>
void with_registers(int queries, const Body& body) {
  constexpr int w = Lanes<T>::width;
  if (queries <= w) return body(std::integral_constant<int, 1>{});
  if constexpr (kMostRegisters == 4)
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
    default:
      for (int d = 0; d < dim; ++d) store_as(t.data, t.dtype, at + d * t.element, value(d));
  }
}

// What is added to the scores of a block of queries with a block of keys.
template <class T>
class BlockBias {
 public:
  // `at`: the element for the first query and key. `memory`: as bias_numel() says.
  BlockBias(const Plan& plan, int64_t entry, const Scores& from, int64_t at, int keys, T* memory)
      : from_(from), at_(at), keys_(keys), memory_(memory) {
    bias_.mask = plan.bits_of(entry);
    bias_.words = plan.words;
    if (from.data == nullptr) return;
    bias_.data = memory;
    if (from.query == 0)
      for (int j = 0; j < keys; ++j) memory[j] = bias_of<T>(from, at + j * from.key);
  }

  // For the queries [first, first + lanes) of the block, of which it has `queries`.
  const Bias<T>& of_strip(int first, int lanes, int queries) {
    bias_.first = first;
    if (from_.data != nullptr && from_.query != 0) {
      bias_.key = lanes;
      for (int j = 0; j < keys_; ++j)
        for (int n = 0; n < lanes; ++n)
          memory_[j * lanes + n] =
              first + n < queries ? bias_of<T>(from_, at_ + (first + n) * from_.query + j * from_.key) : T(0);
    }
    return bias_;
  }

 private:
  const Scores& from_;
  const int64_t at_;
  const int keys_;
  T* const memory_;
  Bias<T> bias_;
};

}  // namespace
}  // namespace fastdiff::attention
