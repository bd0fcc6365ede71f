// SPDX-License-Identifier: Apache-2.0
// match_tokens on the CPU, compiled once per ISA.
//
// First all of b is normalised, row by row. Then a strip of rows of a, side by side in registers, meets it: a
// product of some columns at a time, whose scores stay in the first-level cache until the highest are known.
#include <algorithm>
#include <cmath>

#include "attention/blocks_cpu.h"
#include "attention/match_tokens/match_tokens_math.h"

namespace fastdiff::match_tokens {
namespace {

using attention::Factor;
using attention::product;
using attention::Sequences;
using attention::Start;
using attention::Unit;

// A token divided by its norm, and zeros up to the padded length. The reciprocal of a norm is finite: what is
// smaller than a root of the smallest number is 0 when squared.
template <class T>
void load_normalised(const Params& p, const Sequences& t, int64_t at, T* row) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width, registers = kSumLanes / w;
  load_run(t.data, t.dtype, at, t.channel, p.channels, row);
  const int64_t padded = p.padded();
  std::fill(row + p.channels, row + padded, T(0));
  V squares[registers];
  for (V& s : squares) s = splat<V>(T(0));
  for (int64_t c = 0; c < padded; c += kSumLanes)
    for (int n = 0; n < registers; ++n) {
      const V x = L::load(row + c + n * w);
      squares[n] = fma_(x, x, squares[n]);
    }
  alignas(64) T lane[kSumLanes];
  for (int n = 0; n < registers; ++n) L::store(lane + n * w, squares[n]);
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
  const V factor = splat<V>(T(1) / sqrt_(lane[0]));
  for (int64_t c = 0; c < padded; c += w) L::store(row + c, mul(L::load(row + c), factor));
}

// to[c][l] = from[l][c], as many rows and columns as a register has lanes: interleaved with what is half of
// the rows away, the rows are transposed after as many times as the width has factors of two.
template <class T>
void transpose(const T* from, int64_t from_row, T* to, int64_t to_row) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width;
  V row[w], next[w];
#pragma GCC unroll 16
  for (int l = 0; l < w; ++l) row[l] = L::load(from + l * from_row);
#pragma GCC unroll 4
  for (int times = 1; times < w; times *= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < w / 2; ++l) interleave(row[l], row[l + w / 2], next[2 * l], next[2 * l + 1]);
#pragma GCC unroll 16
    for (int l = 0; l < w; ++l) row[l] = next[l];
  }
#pragma GCC unroll 16
  for (int l = 0; l < w; ++l) L::store(to + l * to_row, row[l]);
}

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  // `columns`: all of b, normalised. `memory`: thread_numel().
  Worker(const Params& p, const T* columns, T* memory)
      : p_(p),
        columns_(columns),
        strip_(memory),
        scores_(strip_ + p.padded() * kMostLanes),
        rows_(scores_ + kColumns * kMostLanes) {}

  // Rows [first, first + count) of a sample.
  template <int kRegisters>
  void strip(int64_t b, int64_t first, int count) {
    constexpr int lanes = kRegisters * L::width;
    load_strip(b, first, count, lanes);
    V best[kRegisters], at[kRegisters];
    for (int n = 0; n < kRegisters; ++n) best[n] = splat<V>(T(-INFINITY)), at[n] = splat<V>(T(0));
    for (int64_t column = 0; column < p_.columns; column += kColumns) {
      const int some = static_cast<int>(std::min(kColumns, p_.columns - column));
      multiply<kRegisters>(b, column, some);
      for (int j = 0; j < some; ++j) {
        const V number = splat<V>(static_cast<T>(column + j));
        for (int n = 0; n < kRegisters; ++n) {
          const V s = L::load(scores_ + j * lanes + n * L::width);
          at[n] = if_new_highest(s, best[n], number, at[n]);
          best[n] = if_new_highest(s, best[n], s, best[n]);
        }
      }
    }
    alignas(64) T score[lanes], number[lanes];
    for (int n = 0; n < kRegisters; ++n) {
      L::store(score + n * L::width, best[n]);
      L::store(number + n * L::width, at[n]);
    }
    for (int l = 0; l < count; ++l) {
      store_as(p_.score.data, p_.score.dtype, p_.score.at(b, first + l), score[l]);
      p_.index[b * p_.index_sample + (first + l) * p_.index_row] = static_cast<int64_t>(number[l]);
    }
  }

 private:
  // [padded][lanes]; a strip that is not full has zeros.
  void load_strip(int64_t b, int64_t first, int count, int lanes) {
    constexpr int w = L::width;
    const int64_t padded = p_.padded();
    for (int lane = 0; lane < lanes; lane += w) {
      for (int l = 0; l < w; ++l) {
        T* const row = rows_ + l * padded;
        if (lane + l < count) {
          load_normalised(p_, p_.a, p_.a.at(b, first + lane + l), row);
        } else {
          std::fill_n(row, padded, T(0));
        }
      }
      for (int64_t c = 0; c < padded; c += w) transpose(rows_ + c, padded, strip_ + c * lanes + lane, lanes);
    }
  }

  template <int kRegisters>
  void multiply(int64_t b, int64_t column, int some) {
    constexpr int lanes = kRegisters * L::width;
    const int64_t padded = p_.padded();
    const T* const rows = columns_ + (b * p_.columns + column) * padded;
    int64_t c = 0;
    do {
      const Factor<T> factor{rows + c, padded, 1};
      const int steps = static_cast<int>(std::min(kChunk, padded - c));
      if (c == 0) {
        product<Start::zero, Unit::step, kRegisters>(factor, strip_, lanes, steps, scores_, lanes, some);
      } else {
        product<Start::kept, Unit::step, kRegisters>(factor, strip_ + c * lanes, lanes, steps, scores_, lanes,
                                                     some);
      }
      c += kChunk;
    } while (c < padded);
  }

  const Params& p_;
  const T* const columns_;
  T *const strip_, *const scores_, *const rows_;
};

template <class T>
void run_all(const Params& p, T* memory, const Team& team) {
  T* const columns = memory;
  const int64_t all = p.samples * p.columns;
  const int64_t loaders = std::min<int64_t>(team.threads, all);
  each_part(team, loaders, [&](int64_t part) {
    for (int64_t n = all * part / loaders; n < all * (part + 1) / loaders; ++n)
      load_normalised(p, p.b, p.b.at(n / p.columns, n % p.columns), columns + n * p.padded());
  });
  constexpr int most = attention::kMostRegisters * Lanes<T>::width;
  const int64_t strips = (p.rows + most - 1) / most, items = p.samples * strips;
  const int64_t parts = std::min<int64_t>(team.threads, items);
  each_part(team, parts, [&](int64_t part) {
    Worker<T> worker(p, columns, columns + all * p.padded() + part * thread_numel(p));
    for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n) {
      const int64_t first = n % strips * most;
      const int count = static_cast<int>(std::min<int64_t>(most, p.rows - first));
      attention::with_registers<T>(
          count, [&](auto registers) { worker.template strip<registers()>(n / strips, first, count); });
    }
  });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.wide) {
    run_all(params, static_cast<double*>(scratch), team);
  } else {
    run_all(params, static_cast<float*>(scratch), team);
  }
}

}  // namespace fastdiff::match_tokens
