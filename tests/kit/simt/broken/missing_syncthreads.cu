// SPDX-License-Identifier: Apache-2.0
// The mistakes: threads read what other warps write, or write again what they still read, with no barrier
// between.
#include "case.h"

namespace missing_syncthreads {

constexpr int kThreads = 128;

template <bool kFixed>
__global__ void reverse(const float* x, float* y) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  if constexpr (kFixed) __syncthreads();
  y[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

constexpr int kSteps = 3;

template <bool kFixed>
__global__ void reverse_steps(const float* x, float* y) {
  __shared__ float tile[kThreads];
  for (int step = 0; step < kSteps; ++step) {
    tile[threadIdx.x] = x[step * kThreads + threadIdx.x];
    __syncthreads();
    y[step * kThreads + threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
    if constexpr (kFixed) __syncthreads();
  }
}

bool run(bool fixed) {
  const std::vector<float> x = ramp(kThreads), expected(x.rbegin(), x.rend());
  std::vector<float> y(kThreads);
  fastdiff::launch(fixed ? reverse<true> : reverse<false>, 1, kThreads, 0, nullptr, x.data(), y.data());
  return y == expected;
}

bool run_steps(bool fixed) {
  const std::vector<float> x = ramp(kSteps * kThreads);
  std::vector<float> y(kSteps * kThreads), expected;
  for (int step = 0; step < kSteps; ++step)
    for (int i = 0; i < kThreads; ++i) expected.push_back(x[step * kThreads + kThreads - 1 - i]);
  fastdiff::launch(fixed ? reverse_steps<true> : reverse_steps<false>, 1, kThreads, 0, nullptr, x.data(),
                   y.data());
  return y == expected;
}

}  // namespace missing_syncthreads
