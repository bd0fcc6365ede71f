// SPDX-License-Identifier: Apache-2.0
// Rows in the memory of a thread: their range, and where they go.
#pragma once

#include <algorithm>

#include "core/runs.h"

namespace fastdiff::quant {
namespace {

// The least and the greatest of elements, of 0, and of what they were before.
inline void widen_range(const float* x, int64_t count, float& least, float& greatest) {
  using L = Lanes<float>;
  using V = L::V;
  V low = splat<V>(0.0f), high = low;
  int64_t k = 0;
  for (; k + L::width <= count; k += L::width) {
    const V v = L::load(x + k);
    low = at_most(low, v);
    high = at_least(high, v);
  }
  alignas(64) float lows[L::width], highs[L::width];
  L::store(lows, low), L::store(highs, high);
  for (int l = 0; l < L::width; ++l) {
    least = std::min(least, lows[l]);
    greatest = std::max(greatest, highs[l]);
  }
  for (; k < count; ++k) {
    least = std::min(least, x[k]);
    greatest = std::max(greatest, x[k]);
  }
}

// y[0 ... count) to a strided run, rounded; whole registers where the elements lie side by side.
template <class T>
void store_run(void* data, DType dtype, int64_t at, int64_t stride, int64_t count, const T* y) {
  int64_t n = 0;
  if (stride == 1 && (dtype == DType::f64) == (sizeof(T) == 8))
    with_storage<T>(dtype, [&]<class S>(S) {
      using L = Lanes<T>;
      for (; n + L::width <= count; n += L::width) L::store(static_cast<S*>(data) + at + n, L::load(y + n));
    });
  for (; n < count; ++n) store_as(data, dtype, at + n * stride, y[n]);
}

}  // namespace
}  // namespace fastdiff::quant
