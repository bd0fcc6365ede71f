// SPDX-License-Identifier: Apache-2.0
// normed_token_mean on the CPU, compiled once per ISA.
//
// Bytes: x is read once; a token stays in the first-level cache while it is measured, normed and added to the
// sum of its chunk. Sums across a token are formed in 16 lanes on every instruction set, and those in one
// order: the same bits everywhere.
#include <algorithm>

#include "attention/normed_token_mean/normed_token_mean_math.h"
#include "core/runs.h"

namespace fastdiff::normed_token_mean {
namespace {

constexpr int kSumLanes = 16;

// The sum of term(x) over a row, in 16 lanes, whatever the registers' width.
template <class T, class Term, class One>
T sum_of(const T* row, int count, const Term& term, const One& one) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = std::min(L::width, kSumLanes), registers = kSumLanes / w;
  static_assert(w == L::width);
  V sum[registers];
  for (int n = 0; n < registers; ++n) sum[n] = splat<V>(T(0));
  int d = 0;
  for (; d + kSumLanes <= count; d += kSumLanes)
    for (int n = 0; n < registers; ++n) sum[n] = term(sum[n], L::load(row + d + n * w));
  alignas(64) T lane[kSumLanes];
  for (int n = 0; n < registers; ++n) L::store(lane + n * w, sum[n]);
  for (int l = 0; d < count; ++d, ++l) lane[l] = one(lane[l], row[d]);
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
  return lane[0];
}

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  explicit Worker(const Params& p) : p_(p) {}

  // The sum of a chunk's normed tokens, [D].
  void chunk(int64_t b, int64_t first, T* sum) {
    std::fill_n(sum, p_.dim, T(0));
    const int64_t last = std::min(p_.tokens, first + kChunk);
    for (int64_t n = first; n < last; ++n) add_normed(row_of(b, n), sum);
  }

 private:
  const T* row_of(int64_t b, int64_t n) {
    const int64_t at = b * p_.sample + n * p_.token;
    if (p_.column == 1 && p_.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32))
      return static_cast<const T*>(p_.x) + at;
    load_run(p_.x, p_.dtype, at, p_.column, p_.dim, row_);
    return row_;
  }

  void add_normed(const T* x, T* sum) const {
    const T count = static_cast<T>(p_.dim);
    const T mean =
        sum_of(x, p_.dim, [](V s, V v) { return add(s, v); }, [](T s, T v) { return s + v; }) / count;
    const V mean_lanes = splat<V>(mean);
    const T squares = sum_of(
        x, p_.dim,
        [&](V s, V v) {
          const V e = sub(v, mean_lanes);
          return fma_(e, e, s);
        },
        [&](T s, T v) { return fma_(v - mean, v - mean, s); });
    const T rstd = T(1) / sqrt_(squares / count + static_cast<T>(p_.eps));
    const V rstd_lanes = splat<V>(rstd);
    int d = 0;
    for (; d + L::width <= p_.dim; d += L::width)
      L::store(sum + d, fma_(sub(L::load(x + d), mean_lanes), rstd_lanes, L::load(sum + d)));
    for (; d < p_.dim; ++d) sum[d] = fma_(x[d] - mean, rstd, sum[d]);
  }

  const Params& p_;
  alignas(64) T row_[kMaxDim];
};

// Adds the chunks of a sample in their order, and stores what becomes of their mean.
template <class T>
void finish(const Params& p, int64_t b, const T* sums) {
  const int64_t chunks = chunks_of(p);
  for (int64_t d = 0; d < p.dim; ++d) {
    T sum = T(0);
    for (int64_t c = 0; c < chunks; ++c) sum = sum + sums[(b * chunks + c) * p.dim + d];
    const T y = modulated(p, b, d, sum / static_cast<T>(p.tokens));
    store_as(p.y.data, p.y.dtype, b * p.y.sample + d * p.y.column, y);
  }
}

template <class T>
void run_all(const Params& p, T* sums, const Team& team) {
  const int64_t chunks = chunks_of(p), items = p.samples * chunks;
  const int64_t parts = std::min<int64_t>(team.threads, items);
  each_part(team, parts, [&](int64_t part) {
    Worker<T> worker(p);
    for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n)
      worker.chunk(n / chunks, n % chunks * kChunk, sums + n * p.dim);
  });
  for (int64_t b = 0; b < p.samples; ++b) finish(p, b, sums);
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.wide()) {
    run_all(params, static_cast<double*>(scratch), team);
  } else {
    run_all(params, static_cast<float*>(scratch), team);
  }
}

}  // namespace fastdiff::normed_token_mean
