// SPDX-License-Identifier: Apache-2.0
// Attention on the CPU, a strip at a time: a strip is a few registers of queries, and everything that belongs
// to it is stored transposed, queries side by side.
//
//   queries [D][lanes]    scores [keys][lanes]    sums [D][lanes]
//
// So the softmax never adds across a register, an element of a key or value is broadcast straight from where
// the caller has it, and each score and each block's sums are one chain of fused multiply-adds in a fixed
// order: the same bits for every instruction set and strip width.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "attention/softmax.h"

namespace fastdiff::attention {
namespace {

// ---- products: C[r][lanes] = start + sum over s of A(r, s) B[s][lanes] -----------------------------

// Six rows of C at a time: with four registers each they leave eight of the 32 of AVX-512 for B, with two
// registers each four of the 16 of AVX2.
inline constexpr int kTileRows = 6;

#if defined(__AVX512F__)
inline constexpr int kMostRegisters = 4;
#else
inline constexpr int kMostRegisters = 2;
#endif

// C starts at 0, as it is, or as it is times a factor for each lane. The sum is formed by itself and added to
// that: a long row of blocks rounds once for each, and not for each key.
enum class Start { zero, kept, scaled };

template <class T>
struct Factor {  // A(r, s) = data[r * row + s * step]
  const T* data;
  int64_t row, step;
};

template <Start kStart, int kRows, int kRegisters, class T>
[[gnu::always_inline]] inline void product_tile(Factor<T> a, const T* b, int64_t b_step, int steps,
                                                const T* factors, T* c, int64_t c_row) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width;
  V sum[kRows][kRegisters];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) sum[r][n] = splat<V>(T(0));
  for (int s = 0; s < steps; ++s, a.data += a.step, b += b_step) {
    V x[kRegisters];
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) x[n] = in_register(L::load(b + n * w));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const V y = in_register(splat<V>(a.data[r * a.row]));
#pragma GCC unroll 4
      for (int n = 0; n < kRegisters; ++n) sum[r][n] = fma_(y, x[n], sum[r][n]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      T* const at = c + r * c_row + n * w;
      if constexpr (kStart == Start::kept) sum[r][n] = add(L::load(at), sum[r][n]);
      if constexpr (kStart == Start::scaled)
        sum[r][n] = fma_(L::load(at), L::load(factors + n * w), sum[r][n]);
      L::store(at, sum[r][n]);
    }
}

// The strides of A that are 1 are constants to the compiler.
enum class Unit { step, row };

template <Start kStart, Unit kUnit, int kRegisters, int kRows, class T>
void product_rows(Factor<T> a, const T* b, int64_t b_step, int steps, const T* factors, T* c, int64_t c_row,
                  int rows) {
  if constexpr (kRows == kTileRows) {
    for (; rows >= kRows; rows -= kRows, a.data += kRows * a.row, c += kRows * c_row)
      product_tile<kStart, kRows, kRegisters>(
          kUnit == Unit::step ? Factor<T>{a.data, a.row, 1} : Factor<T>{a.data, 1, a.step}, b, b_step, steps,
          factors, c, c_row);
  } else if (rows == kRows) {
    return product_tile<kStart, kRows, kRegisters>(
        kUnit == Unit::step ? Factor<T>{a.data, a.row, 1} : Factor<T>{a.data, 1, a.step}, b, b_step, steps,
        factors, c, c_row);
  }
  if constexpr (kRows > 1)
    if (rows > 0)
      product_rows<kStart, kUnit, kRegisters, kRows - 1>(a, b, b_step, steps, factors, c, c_row, rows);
}

// C is [rows][kRegisters registers], its rows c_row apart; B [steps][the same], b_step apart.
template <Start kStart, Unit kUnit, int kRegisters, class T>
void product(Factor<T> a, const T* b, int64_t b_step, int steps, T* c, int64_t c_row, int rows,
             const T* factors = nullptr) {
  product_rows<kStart, kUnit, kRegisters, kTileRows>(a, b, b_step, steps, factors, c, c_row, rows);
}

// C[rows][columns] += A B by whole registers.
template <class T>
void add_product(Factor<T> a, const T* b, int steps, T* c, int rows, int64_t columns) {
  constexpr int w = Lanes<T>::width;
  int64_t j = 0;
  const auto group = [&](auto registers) {
    for (; j + registers() * w <= columns; j += registers() * w)
      product<Start::kept, Unit::step, registers()>(a, b + j, columns, steps, c + j, columns, rows);
  };
  if constexpr (kMostRegisters == 4) group(std::integral_constant<int, 4>{});
  group(std::integral_constant<int, 2>{});
  group(std::integral_constant<int, 1>{});
}

// ---- scores ----------------------------------------------------------------------------------------

// What is added to the scores of a block of keys, for the queries of a strip.
template <class T>
struct Bias {
  const T* data = nullptr;         // null: none. [keys], or [keys][lanes] if each query has its own
  int64_t key = 0;                 // lanes between keys; 0: one number for all queries
  const uint32_t* mask = nullptr;  // null: all is seen. [keys][words], a bit for each query of the block
  int64_t words = 0;
  int first = 0;  // the strip's first query
};

// Of a block of keys, [keys][lanes], a row `row` elements after the one before.
template <class T>
struct Block {
  T* data;
  int64_t row;
  int keys;
};

// Scores as they were stored.
struct AsTheyAre {
  template <class V>
  V operator()(V s) const {
    return s;
  }
};

// Adds the bias to scaled(score), hides what is masked, and gives the maxima over the keys and `highest`.
// With neither bias nor mask the scores stay as they are stored.
template <int kRegisters, bool kPlain, class T, class Scaled = AsTheyAre>
void finish_scores(const Block<T>& scores, const Bias<T>& bias, typename Lanes<T>::V (&highest)[kRegisters],
                   const Scaled& scaled = {}) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width;
  for (int j = 0; j < scores.keys; ++j)
    for (int n = 0; n < kRegisters; ++n) {
      T* const at = scores.data + j * scores.row + n * w;
      V s = scaled(L::load(at));
      if constexpr (!kPlain) {
        if (bias.data)
          s = add(s, bias.key ? L::load(bias.data + j * bias.key + n * w) : splat<V>(bias.data[j]));
        if (bias.mask) {
          const int bit = bias.first + n * w;  // past the last word is no query
          const uint32_t word = bit / 32 < bias.words ? bias.mask[j * bias.words + bit / 32] : 0;
          s = where_bits(word >> (bit % 32), s, splat<V>(T(-INFINITY)));
        }
        L::store(at, s);
      }
      highest[n] = at_least(highest[n], s);
    }
}

// ---- the running softmax ---------------------------------------------------------------------------

// Of the queries of a strip, [lanes] each.
template <class T>
struct Running {
  T* highest;  // of all scores so far, kLowest at first
  T* total;    // sum of 2^(score - highest), 0 at first
  T* shrink;   // what the last block has made of earlier terms: 2^(highest before - highest)
};

// x = 2^(x - subtract[lane]); adds each lane's sum to `sum`.
template <int kRegisters, class T>
void exponentials(const Block<T>& x, const T* subtract, typename Lanes<T>::V (&sum)[kRegisters]) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width;
  V less[kRegisters];
  for (int n = 0; n < kRegisters; ++n) less[n] = L::load(subtract + n * w);
  for (int j = 0; j < x.keys; ++j)
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      T* const at = x.data + j * x.row + n * w;
      V p = sub(L::load(at), less[n]);
      if constexpr (sizeof(T) == sizeof(float)) {
        p = exp2_(p);
        L::store(at, p);
      } else {
        L::store(at, p);
        for (int l = 0; l < w; ++l) at[l] = std::exp2(at[l]);
        p = L::load(at);
      }
      sum[n] = add(sum[n], p);
    }
}

// Scores [keys][lanes] to their exponentials, with everything that a new maximum changes.
// exponentials_of(plain, sum) makes them: of scaled(score) if plain, else of what finish_scores() has left.
template <int kRegisters, class T, class Scaled, class Exponentials>
void softmax_block(const Block<T>& scores, const Bias<T>& bias, const Running<T>& running,
                   const Scaled& scaled, const Exponentials& exponentials_of) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width;
  V highest[kRegisters], sum[kRegisters];
  for (int n = 0; n < kRegisters; ++n) highest[n] = L::load(running.highest + n * w);
  const bool plain = bias.data == nullptr && bias.mask == nullptr;
  if (plain) {
    finish_scores<kRegisters, true>(scores, bias, highest, scaled);
  } else {
    finish_scores<kRegisters, false>(scores, bias, highest, scaled);
  }
  for (int n = 0; n < kRegisters; ++n) L::store(running.shrink + n * w, L::load(running.highest + n * w));
  for (int n = 0; n < kRegisters; ++n) L::store(running.highest + n * w, highest[n]);
  V none[kRegisters];
  for (int n = 0; n < kRegisters; ++n) none[n] = splat<V>(T(0));
  exponentials<kRegisters>(Block<T>{running.shrink, 0, 1}, running.highest, none);
  for (int n = 0; n < kRegisters; ++n) sum[n] = splat<V>(T(0));
  exponentials_of(plain, sum);
  for (int n = 0; n < kRegisters; ++n)
    L::store(running.total + n * w,
             fma_(L::load(running.total + n * w), L::load(running.shrink + n * w), sum[n]));
}
template <int kRegisters, class T>
void softmax_block(const Block<T>& scores, const Bias<T>& bias, const Running<T>& running) {
  softmax_block<kRegisters>(scores, bias, running, AsTheyAre{},
                            [&](bool, auto& sum) { exponentials<kRegisters>(scores, running.highest, sum); });
}

}  // namespace
}  // namespace fastdiff::attention
