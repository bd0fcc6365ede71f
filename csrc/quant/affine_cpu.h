// SPDX-License-Identifier: Apache-2.0
// affine.h on the CPU, for *_cpu.cpp files: runs that lie side by side and share a scale go through
// registers, all others through blocks in the first-level cache.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/runs.h"
#include "quant/affine_math.h"

namespace fastdiff::quant {
namespace {

template <class T, class S>
T element(S x) {
  if constexpr (std::is_same_v<S, int8_t>) {
    return static_cast<T>(x);
  } else {
    return widened<T>(x);
  }
}
template <class S, class T>
S stored(T x) {
  if constexpr (std::is_same_v<S, int8_t>) {
    return to_int8(x);
  } else {
    return narrow<S>(x);
  }
}

// Arithmetic in T.
template <class T, class Formula>
class ElementWorker {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  explicit ElementWorker(const Elements& e) : e_(e) {
    is_direct_ = sizeof(T) == sizeof(float) && e.x.dtype != DType::f64 && e.y.dtype != DType::f64;
    for (const Operand* t : {&e.x, &e.y, &e.gradient})
      is_direct_ = is_direct_ && (t->data == nullptr || t->stride[0] == 1 || e.size[0] == 1);
    for (const Operand* t : {&e.affine.scale, &e.affine.zero})
      is_direct_ = is_direct_ && (t->stride[0] == 0 || e.size[0] == 1);
  }

  void run(int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t sample = begin / e_.numel, first = begin % e_.numel;
      const int64_t count = std::min(e_.numel - first, end - begin);
      sample_ = sample;
      row_ = e_.affine.step_of(sample);
      each_run(first, count);
      begin += count;
    }
    if (e_.stream) stream_fence();
  }

 private:
  // Where a run begins in each tensor.
  struct Places {
    int64_t x, y, gradient, scale, zero;
  };

  void each_run(int64_t first, int64_t count) {
    int64_t at[kMaxDims], rest = first;
    for (int d = 0; d < e_.dims; ++d) {
      at[d] = d + 1 < e_.dims ? rest % e_.size[d] : rest;
      rest /= e_.size[d];
    }
    while (count > 0) {
      const int64_t run = std::min(count, e_.size[0] - at[0]);
      const auto place = [&](const Operand& t, int64_t base) {
        for (int d = 0; d < e_.dims; ++d) base += at[d] * t.stride[d];
        return base + sample_ * t.sample_stride;
      };
      const Affine& a = e_.affine;
      const Places places{place(e_.x, 0), place(e_.y, 0), place(e_.gradient, 0),
                          place(a.scale, row_ * a.scale_row), place(a.zero, row_ * a.zero_row)};
      is_direct_ ? direct_run(places, run) : blocks(places, run);
      count -= run;
      at[0] += run;
      for (int d = 0; d + 1 < e_.dims && at[d] == e_.size[d]; ++d) at[d] = 0, ++at[d + 1];
    }
  }

  template <class P>
  Point<P> point_of(T scale, T zero) const {
    return {P{},
            P{},
            splat<P>(scale),
            splat<P>(div(T(1), scale)),
            splat<P>(zero),
            splat<P>(static_cast<T>(e_.affine.low)),
            splat<P>(static_cast<T>(e_.affine.high))};
  }

  void direct_run(const Places& at, int64_t count) {
    if constexpr (sizeof(T) == sizeof(float)) {
      with_storage<T>(Formula::kReadsInt8 ? e_.y.dtype : e_.x.dtype, [&]<class S>(S) {
        using In = std::conditional_t<Formula::kReadsInt8, int8_t, S>;
        using Out = std::conditional_t<Formula::kWritesInt8, int8_t, S>;
        const T scale = load_as<T>(e_.affine.scale.data, e_.affine.scale.dtype, at.scale);
        const T zero = static_cast<T>(e_.affine.zero_at(at.zero));
        direct(static_cast<const In*>(e_.x.data) + at.x,
               static_cast<const In*>(Formula::kHasGradient ? e_.gradient.data : e_.x.data) + at.gradient,
               static_cast<Out*>(e_.y.data) + at.y, count, scale, zero);
      });
    }
  }

  template <class In, class Out>
  void direct(const In* x, const In* gradient, Out* y, int64_t count, T scale, T zero) const {
    Point<V> p = point_of<V>(scale, zero);
    Point<T> one = point_of<T>(scale, zero);
    const auto lanes = [&](int64_t e) {
      if constexpr (Formula::kReadsInt8) {
        p.x = Int8Lanes::load(x + e);
      } else {
        p.x = L::load(x + e);
      }
      if constexpr (Formula::kHasGradient) p.gradient = L::load(gradient + e);
      return Formula{}(p);
    };
    const auto single = [&](int64_t e) {
      one.x = element<T>(x[e]);
      if constexpr (Formula::kHasGradient) one.gradient = element<T>(gradient[e]);
      y[e] = stored<Out>(Formula{}(one));
    };
    int64_t e = 0;
    if constexpr (Formula::kWritesInt8) {
      for (; e + L::width <= count; e += L::width) Int8Lanes::store(y + e, lanes(e));
    } else {
      constexpr uintptr_t kRegister = L::width * sizeof(Out);
      if (e_.stream) {  // non-temporal stores want whole aligned registers
        for (; e < count && reinterpret_cast<uintptr_t>(y + e) % kRegister != 0; ++e) single(e);
        for (; e + L::width <= count; e += L::width) L::stream(y + e, lanes(e));
      }
      for (; e + L::width <= count; e += L::width) L::store(y + e, lanes(e));
    }
    for (; e < count; ++e) single(e);
  }

  void blocks(Places at, int64_t count) {
    const Affine& a = e_.affine;
    const auto load = [](const Operand& t, int64_t place, int64_t n, T* block) {
      load_run(t.data, t.dtype, place, t.stride[0], n, block);
    };
    for (int64_t left = count; left > 0;) {
      const int64_t n = std::min(left, kBlock);
      load(e_.x, at.x, n, x_);
      load(a.scale, at.scale, n, scale_);
      for (int64_t e = 0; e < n; ++e) zero_[e] = static_cast<T>(a.zero_at(at.zero + e * a.zero.stride[0]));
      if constexpr (Formula::kHasGradient) load(e_.gradient, at.gradient, n, gradient_);
      compute(n);
      for (int64_t e = 0; e < n; ++e) {
        const int64_t to = at.y + e * e_.y.stride[0];
        if constexpr (Formula::kWritesInt8) {
          static_cast<int8_t*>(e_.y.data)[to] = to_int8(x_[e]);
        } else {
          store_as(e_.y.data, e_.y.dtype, to, x_[e]);
        }
      }
      at = {at.x + n * e_.x.stride[0], at.y + n * e_.y.stride[0], at.gradient + n * e_.gradient.stride[0],
            at.scale + n * a.scale.stride[0], at.zero + n * a.zero.stride[0]};
      left -= n;
    }
  }

  // x_ becomes the result.
  void compute(int64_t n) {
    Point<V> p = point_of<V>(T(1), T(0));
    int64_t e = 0;
    for (; e + L::width <= n; e += L::width) {
      p.x = L::load(x_ + e), p.zero = L::load(zero_ + e), p.scale = L::load(scale_ + e);
      p.inverse = div(splat<V>(T(1)), p.scale);
      if constexpr (Formula::kHasGradient) p.gradient = L::load(gradient_ + e);
      L::store(x_ + e, Formula{}(p));
    }
    for (; e < n; ++e) {
      Point<T> one = point_of<T>(scale_[e], zero_[e]);
      one.x = x_[e];
      if constexpr (Formula::kHasGradient) one.gradient = gradient_[e];
      x_[e] = Formula{}(one);
    }
  }

  static constexpr int64_t kBlock = 1024;

  const Elements& e_;
  bool is_direct_;
  int64_t sample_ = 0, row_ = 0;
  alignas(64) T x_[kBlock], scale_[kBlock], zero_[kBlock], gradient_[Formula::kHasGradient ? kBlock : 1];
};

// Elements begin ... end - 1, counted over all samples.
template <class Formula>
void run_elements(const Elements& e, int64_t begin, int64_t end) {
  if (e.wide) {
    ElementWorker<double, Formula>(e).run(begin, end);
  } else {
    ElementWorker<float, Formula>(e).run(begin, end);
  }
}

}  // namespace
}  // namespace fastdiff::quant
