// SPDX-License-Identifier: Apache-2.0
// The formula of window_blend, generic over lanes; shared by the CPU loop and the CUDA kernel.
#pragma once

#include "core/lanes.h"
#include "guidance/window_blend/window_blend.h"

namespace fastdiff::window_blend {
namespace {

// Of numbers and of registers: both have this operator.
template <class V>
FASTDIFF_HD V plus(V a, V b) {
  return a + b;
}

// sum + w x. Where w is 0, x is not looked at: it may be NaN.
template <class V>
FASTDIFF_HD V plus_weighted(V sum, V w, V x) {
  return if_zero(w, sum, fma_(w, x, sum));
}

// A true division: equal views give their own value back, and a sum of tiny weights has a reciprocal of inf.
template <class V>
FASTDIFF_HD V mean(V sum, V weight) {
  return div(sum, weight);
}

template <class T>
FASTDIFF_HD T weight_at(const Weights& w, int64_t view, int64_t y, int64_t x) {
  return load_as<T>(w.data, w.dtype, view * w.view + y * w.row + x * w.column);
}

}  // namespace
}  // namespace fastdiff::window_blend
