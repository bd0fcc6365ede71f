// SPDX-License-Identifier: Apache-2.0
// The mistakes: barriers that not all threads of the block reach, or that they reach at different places.
#include "case.h"

namespace barrier {

constexpr int kThreads = 96;
constexpr int kSize = 70;

// The threads behind the end leave before the barrier.
template <bool kFixed>
__global__ void early_exit(const float* x, float* y) {
  __shared__ float tile[kThreads];
  const unsigned i = threadIdx.x;
  if (!kFixed && i >= kSize) return;
  if (i < kSize) tile[i] = x[i];
  __syncthreads();
  if (i < kSize) y[i] = tile[kSize - 1 - i];
}

// Each branch has a barrier of its own.
template <bool kFixed>
__global__ void one_per_branch(const float* x, float* y) {
  __shared__ float tile[kThreads];
  const unsigned i = threadIdx.x;
  if (i < kSize) {
    tile[i] = x[i];
    if (!kFixed) __syncthreads();
  } else {
    if (!kFixed) __syncthreads();
  }
  if (kFixed) __syncthreads();
  if (i < kSize) y[i] = tile[kSize - 1 - i];
}

// A shuffle on one side, a barrier on the other.
template <bool kFixed>
__global__ void shuffle_against_barrier(const float* x, float* y) {
  __shared__ float tile[kThreads];
  const unsigned i = threadIdx.x;
  if (i < kSize) tile[i] = x[i];
  float zero = 0.0f;
  if (kFixed || i % 2 == 0) zero = __shfl_sync(0xffffffffu, 0.0f, 0);
  __syncthreads();
  if (i < kSize) y[i] = tile[kSize - 1 - i] + zero;
}

bool run(void (*kernel)(const float*, float*)) {
  const std::vector<float> x = ramp(kSize), expected(x.rbegin(), x.rend());
  std::vector<float> y(kSize);
  fastdiff::launch(kernel, 1, kThreads, 0, nullptr, x.data(), y.data());
  return y == expected;
}
bool run_exit(bool fixed) {
  return run(fixed ? early_exit<true> : early_exit<false>);
}
bool run_branch(bool fixed) {
  return run(fixed ? one_per_branch<true> : one_per_branch<false>);
}
bool run_shuffle(bool fixed) {
  return run(fixed ? shuffle_against_barrier<true> : shuffle_against_barrier<false>);
}

}  // namespace barrier
