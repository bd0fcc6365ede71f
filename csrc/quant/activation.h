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

// x Phi(x) with Phi(x) = 1/2 + z h(w), z = x / 5.3 within -1 and 1, w = 2 z^2 - 1. At z = -1 and 1 this is
// exactly 0 and 1. A polynomial alone: a division and an exponential would take half as long again.
template <class V>
FASTDIFF_HD V gelu(V x) {
  constexpr float kTerms[] = {0.706980646f,   -0.352548122f,   0.261099696f,  -0.209820285f,
                              0.170027733f,   -0.13409099f,    0.100267977f,  -0.069842726f,
                              0.0469025299f,  -0.0310805757f,  0.0164488349f, -0.00573689351f,
                              0.00399920018f, -0.00407727575f, 0.00147024787f};
  const V one = splat<V>(1.0f);
  const V z = at_most(one, at_least(splat<V>(-1.0f), mul(x, splat<V>(1.0f / 5.3f))));
  const V w = fma_(mul(z, z), splat<V>(2.0f), splat<V>(-1.0f));
  V h = splat<V>(kTerms[14]);
  for (int n = 13; n >= 0; --n) h = fma_(h, w, splat<V>(kTerms[n]));
  return mul(x, fma_(h, z, splat<V>(0.5f)));
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
