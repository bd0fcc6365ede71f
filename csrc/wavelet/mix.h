// SPDX-License-Identifier: Apache-2.0
// The one loop of the wavelet kernels on the CPU: two sums of rows,
//
//   u[j] = sum_e weight_u[e] row[e][j]        v[j] = sum_e weight_v[e] row[e][j]
//
// with as many accumulators in registers as there are, so that each load feeds two multiplications. All
// dimensions are brought to this form: an outer one has its rows in memory, the innermost one has the even
// and the odd places of a sequence in two rows, and what an outer dimension makes is split into those on its
// way.
//
// The anonymous namespace is on purpose, see lanes.h.
#pragma once

#include <algorithm>
#include <utility>

#include "core/runs.h"
#include "wavelet/filter_bank.h"
#include "wavelet/strips.h"

namespace fastdiff::wavelet {
namespace {

// body(0) ... body(kCount - 1) with numbers that the compiler knows: what they index stays in registers.
template <class Body, int... kNumbers>
[[gnu::always_inline]] inline void each_number(std::integer_sequence<int, kNumbers...>, const Body& body) {
  (body(std::integral_constant<int, kNumbers>{}), ...);
}
template <int kCount, class Body>
[[gnu::always_inline]] inline void each(const Body& body) {
  each_number(std::make_integer_sequence<int, kCount>{}, body);
}

// Rows that lie at least this far apart begin in pages of their own, and the hardware does not see them
// coming.
inline constexpr int64_t kFarBytes = 1024;

// Asks for `count` elements that will be read or, kWrite, written soon.
template <bool kWrite, class S>
inline void prefetch(const S* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(S);
  for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(from + j, kWrite);
}

// Rows of storage type S, and their weights: first those of both sums, then of u alone, then of v alone.
template <class T, class S>
struct Mix {
  int both = 0, only_u = 0, only_v = 0;
  const S* row[kMaxTaps];
  T u[kMaxTaps], v[kMaxTaps];
};

// ---- where the sums go: sink.put(j, count registers), sink.put(j, two numbers) --------------------

template <class T>
struct RowSink {
  T *u, *v;

  template <int kCount, class V>
  [[gnu::always_inline]] void put(int64_t j, const V (&a)[kCount], const V (&b)[kCount]) const {
    each<kCount>([&](auto n) __attribute__((always_inline)) {
      Lanes<T>::store(u + j + n * Lanes<T>::width, a[n]);
      Lanes<T>::store(v + j + n * Lanes<T>::width, b[n]);
    });
  }
  void put(int64_t j, T a, T b) const {
    u[j] = a;
    v[j] = b;
  }
};

// Bands: rounded to storage type S, each sum times a factor if they have one.
template <class T, class S, bool kScaled>
struct BandSink {
  S *u, *v;
  T factor_u, factor_v;
  bool divide;

  template <class V>
  V scaled(V value, T factor) const {
    if constexpr (kScaled) value = wavelet::scaled(value, splat<V>(factor), divide);
    return value;
  }
  template <int kCount, class V>
  [[gnu::always_inline]] void put(int64_t j, const V (&a)[kCount], const V (&b)[kCount]) const {
    each<kCount>([&](auto n) __attribute__((always_inline)) {
      Lanes<T>::store(u + j + n * Lanes<T>::width, scaled(a[n], factor_u));
      Lanes<T>::store(v + j + n * Lanes<T>::width, scaled(b[n], factor_v));
    });
  }
  void put(int64_t j, T a, T b) const {
    u[j] = narrow<S>(scaled(a, factor_u));
    v[j] = narrow<S>(scaled(b, factor_v));
  }
};

// Even and odd places of each row apart: place j of a row is element j/2 of its first or second half.
template <class T>
struct SplitSink {
  T *u[2], *v[2];

  template <int kCount, class V>
  [[gnu::always_inline]] void put(int64_t j, const V (&a)[kCount], const V (&b)[kCount]) const {
    static_assert(kCount % 2 == 0);
    each<kCount / 2>([&](auto n) __attribute__((always_inline)) {
      split(u, j / 2 + n * Lanes<T>::width, a[2 * n], a[2 * n + 1]);
      split(v, j / 2 + n * Lanes<T>::width, b[2 * n], b[2 * n + 1]);
    });
  }
  void put(int64_t j, T a, T b) const {
    u[j % 2][j / 2] = a;
    v[j % 2][j / 2] = b;
  }

 private:
  template <class V>
  static void split(T* const (&to)[2], int64_t at, V a, V b) {
    V even, odd;
    deinterleave(a, b, even, odd);
    Lanes<T>::store(to[0] + at, even);
    Lanes<T>::store(to[1] + at, odd);
  }
};

// u and v side by side in one row.
template <class T, class S>
struct WeaveSink {
  S* to;

  template <int kCount, class V>
  [[gnu::always_inline]] void put(int64_t j, const V (&a)[kCount], const V (&b)[kCount]) const {
    each<kCount>([&](auto n) __attribute__((always_inline)) {
      V low, high;
      interleave(a[n], b[n], low, high);
      S* at = to + 2 * (j + n * Lanes<T>::width);
      Lanes<T>::store(at, low);
      Lanes<T>::store(at + Lanes<T>::width, high);
    });
  }
  void put(int64_t j, T a, T b) const {
    to[2 * j] = narrow<S>(a);
    to[2 * j + 1] = narrow<S>(b);
  }
};

// A row's places 0, 2, 4, ... and 1, 3, 5, ... apart.
template <class T, class S>
void split(const S* row, int64_t count, T* evens, T* odds) {
  using L = Lanes<T>;
  int64_t j = 0;
  for (; j + 2 * L::width <= count; j += 2 * L::width) {
    typename L::V even, odd;
    deinterleave(L::load(row + j), L::load(row + j + L::width), even, odd);
    L::store(evens + j / 2, even);
    L::store(odds + j / 2, odd);
  }
  for (; j < count; ++j) (j % 2 ? odds : evens)[j / 2] = widened<T>(row[j]);
}

template <class T, class S>
void narrow_row(const T* from, int64_t count, S* to) {
  using L = Lanes<T>;
  int64_t j = 0;
  for (; j + L::width <= count; j += L::width) L::store(to + j, L::load(from + j));
  for (; j < count; ++j) to[j] = narrow<S>(from[j]);
}

// ---- the sums -------------------------------------------------------------------------------------

// At `at(n)`, n < kCount.
template <int kCount, class V, class L, class T, class S, class At>
[[gnu::always_inline]] inline void add_terms(const Mix<T, S>& m, const At& at, V (&u)[kCount],
                                             V (&v)[kCount]) {
  each<kCount>([&](auto n) __attribute__((always_inline)) { u[n] = v[n] = splat<V>(T(0)); });
  int e = 0;
  for (; e < m.both; ++e) {
    const V weight_u = splat<V>(m.u[e]), weight_v = splat<V>(m.v[e]);
    const S* const row = m.row[e];
    each<kCount>([&](auto n) __attribute__((always_inline)) {
      const V x = in_register(L::load(row + at(n)));
      u[n] = fma_(weight_u, x, u[n]);
      v[n] = fma_(weight_v, x, v[n]);
    });
  }
  const auto alone = [&](int count, const T* weight, V(&sum)[kCount]) __attribute__((always_inline)) {
    for (const int end = e + count; e < end; ++e) {
      const V w = splat<V>(weight[e]);
      const S* const row = m.row[e];
      each<kCount>([&](auto n)
                       __attribute__((always_inline)) { sum[n] = fma_(w, L::load(row + at(n)), sum[n]); });
    }
  };
  alone(m.only_u, m.u, u);
  alone(m.only_v, m.v, v);
}

// One element, in the place of a register.
template <class T>
struct OneLane {
  static constexpr int width = 1;
  template <class S>
  static T load(const S* x) {
    return widened<T>(*x);
  }
};

// kCount registers side by side from element j on.
template <int kCount, class T, class S, class Sink>
[[gnu::always_inline]] inline void mix_registers(const Mix<T, S>& m, int64_t from, int64_t j,
                                                 const Sink& sink) {
  using V = typename Lanes<T>::V;
  V u[kCount], v[kCount];
  add_terms<kCount, V, Lanes<T>>(
      m, [&](int n) __attribute__((always_inline)) { return from + j + n * Lanes<T>::width; }, u, v);
  sink.put(j, u, v);
}

// The same, but the last register ends at `end`: it may take elements of the one before it a second time.
template <int kCount, class T, class S, class Sink>
inline void mix_last(const Mix<T, S>& m, int64_t from, int64_t j, int64_t end, const Sink& sink) {
  using V = typename Lanes<T>::V;
  const auto place = [&](int n) __attribute__((always_inline)) {
    return n + 1 < kCount ? j + n * Lanes<T>::width : end - Lanes<T>::width;
  };
  V u[kCount], v[kCount];
  add_terms<kCount, V, Lanes<T>>(
      m, [&](int n) __attribute__((always_inline)) { return from + place(n); }, u, v);
  each<kCount>([&](auto n) __attribute__((always_inline)) {
    const V a[1] = {u[n]}, b[1] = {v[n]};
    sink.put(place(n), a, b);
  });
}

template <class T, class S, class Sink>
inline void mix_one(const Mix<T, S>& m, int64_t from, int64_t j, const Sink& sink) {
  T u[1], v[1];
  add_terms<1, T, OneLane<T>>(m, [&](int) { return from + j; }, u, v);
  sink.put(j, u[0], v[0]);
}

// `count` elements from `from` on of each row, as elements 0, 1, ... of the sink. Few registers at a time
// would wait for each other, so that what is left over joins the last ones.
template <class T, class S, class Sink>
void mix(const Mix<T, S>& m, int64_t from, int64_t count, const Sink& sink) {
  constexpr int64_t width = Lanes<T>::width;
  if (count < width) {
    for (int64_t j = 0; j < count; ++j) mix_one(m, from, j, sink);
    return;
  }
  int64_t j = 0;
  for (; j + 7 * width <= count; j += 4 * width) mix_registers<4>(m, from, j, sink);
  switch ((count - j + width - 1) / width) {
    case 1:
      return mix_last<1>(m, from, j, count, sink);
    case 2:
      return mix_last<2>(m, from, j, count, sink);
    case 3:
      return mix_last<3>(m, from, j, count, sink);
    case 4:
      return mix_last<4>(m, from, j, count, sink);
    case 5:
      return mix_last<5>(m, from, j, count, sink);
    case 6:
      return mix_last<6>(m, from, j, count, sink);
    case 7:
      mix_registers<4>(m, from, j, sink);
      return mix_last<3>(m, from, j + 4 * width, count, sink);
  }
}

// The same for sinks that take registers in pairs, at even places.
template <class T, class S, class Sink>
void mix_pairs(const Mix<T, S>& m, int64_t from, int64_t count, const Sink& sink) {
  constexpr int64_t width = Lanes<T>::width;
  int64_t j = 0;
  for (; j + 4 * width <= count; j += 4 * width) mix_registers<4>(m, from, j, sink);
  if (j < count && count >= 4 * width) {  // the rest with some elements a second time
    j = (count - 4 * width) / 2 * 2;
    mix_registers<4>(m, from, j, sink);
    j += 4 * width;
  }
  for (; j + 2 * width <= count; j += 2 * width) mix_registers<2>(m, from, j, sink);
  for (; j < count; ++j) mix_one(m, from, j, sink);
}

}  // namespace
}  // namespace fastdiff::wavelet
