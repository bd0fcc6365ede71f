// SPDX-License-Identifier: Apache-2.0
// The kernel of for_worker_py.cpp.
#include "for_worker.h"

#include "core/launch.cuh"

namespace for_worker {
namespace {

__global__ void twice_kernel(const float* x, float* y, int first, int n) {
  const int i = first + static_cast<int>(threadIdx.x);
  if (i < first + n) y[i] = 2.0f * x[i];
}

}  // namespace

void twice(const float* x, float* y, int first, int n) {
  fastdiff::launch(twice_kernel, 1, 64, 0, nullptr, x, y, first, n);
}

}  // namespace for_worker
