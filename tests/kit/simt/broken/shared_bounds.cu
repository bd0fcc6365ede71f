// SPDX-License-Identifier: Apache-2.0
// The mistakes: an index one past a __shared__ array, through a pointer, and one past the dynamic shared
// memory.
#include "case.h"

namespace shared_bounds {

constexpr int kThreads = 40;

__device__ void rotate(float* tile, int shift, float value, float* y) {
  tile[(threadIdx.x + static_cast<unsigned>(shift))] = value;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

namespace {  // a template's shared variables have red zones only if the template is internal, as ours are

template <bool kFixed>
__global__ void in_static(const float* x, float* y) {
  __shared__ float tile[kThreads];
  rotate(tile, kFixed ? 0 : 1, x[threadIdx.x], y);
}

template <bool kFixed>
__global__ void in_dynamic(const float* x, float* y) {
  rotate(fastdiff::dynamic_smem<float>(), kFixed ? 0 : 1, x[threadIdx.x], y);
}

}  // namespace

bool run(void (*kernel)(const float*, float*), size_t dynamic_bytes) {
  const std::vector<float> x = ramp(kThreads);
  std::vector<float> y(kThreads);
  fastdiff::launch(kernel, 1, kThreads, dynamic_bytes, nullptr, x.data(), y.data());
  return y == x;
}
bool run_static(bool fixed) {
  return run(fixed ? in_static<true> : in_static<false>, 0);
}
bool run_dynamic(bool fixed) {
  return run(fixed ? in_dynamic<true> : in_dynamic<false>, kThreads * sizeof(float));
}

}  // namespace shared_bounds
