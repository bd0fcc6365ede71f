// SPDX-License-Identifier: Apache-2.0
// Activation functions behind linear layers, for lanes of any kind. Absolute errors are below 3e-7 max(1,
// |x|).
#pragma once

#include "core/exp2.h"

namespace fastdiff::quant {

// The numbers that the schema has.
enum class Activation : int8_t { none, gelu, gelu_tanh, silu };
inline constexpr int kActivations = 4;

namespace {

// x / (1 + exp(-z)) for any z of the sign of x: the exponential is that of -|z| and cannot overflow.
template <class V>
FASTDIFF_HD V times_sigmoid(V x, V z) {
  const V zero = splat<V>(0.0f);
  const V e = exp2_(mul(abs_(z), splat<V>(static_cast<float>(-kLog2E))));
  return div(fma_(at_most(zero, x), e, at_least(zero, x)), add(splat<V>(1.0f), e));
}

template <class V>
FASTDIFF_HD V silu(V x) {
  return times_sigmoid(x, x);
}

// x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class V>
FASTDIFF_HD V gelu_tanh(V x) {
  const V inner = fma_(mul(x, x), splat<V>(0.071354816f), splat<V>(1.5957691f));
  return times_sigmoid(x, mul(x, inner));
}

// x Phi(x) = max(x, 0) - a Phi(-a), a = |x|, with Phi(-a) = exp(-a^2 / 2) t q(t), t = 1 / (1 + a / 4).
template <class V>
FASTDIFF_HD V gelu(V x) {
  constexpr float kTail[] = {0.09885352f,  0.1125472f, 0.02176215f, 0.28943593f,
                             -0.27762946f, 0.3482802f, -0.09324961f};  // of q, error 1e-9
  // -a, but not below -20 for positive x, so that infinity is not taken times 0 there.
  const V s = at_most(sub(splat<V>(0.0f), at_most(splat<V>(20.0f), x)), x);
  const V t = div(splat<V>(1.0f), fma_(s, splat<V>(-0.25f), splat<V>(1.0f)));
  V q = splat<V>(kTail[6]);
  for (int n = 5; n >= 0; --n) q = fma_(q, t, splat<V>(kTail[n]));
  const V e = exp2_(mul(mul(s, s), splat<V>(static_cast<float>(-0.5 * kLog2E))));
  return fma_(s, mul(mul(t, q), e), at_least(splat<V>(0.0f), x));
}

template <class V>
FASTDIFF_HD V activate(Activation which, V x) {
  switch (which) {
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::silu:
      return silu(x);
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace
}  // namespace fastdiff::quant
