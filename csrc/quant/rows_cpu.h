// SPDX-License-Identifier: Apache-2.0
// Rows out of the memory of a thread.
#pragma once

#include "core/runs.h"

namespace fastdiff::quant {
namespace {

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
