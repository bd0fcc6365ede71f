// SPDX-License-Identifier: Apache-2.0
// The mistakes: shared memory is used as if it began with zeros, or still held what the block before left
// there.
#include "case.h"

namespace uninitialised {

constexpr int kThreads = 64;
constexpr int kBlocks = 3;

template <bool kFixed>
__global__ void count(float* y) {
  __shared__ float total;
  if (kFixed && threadIdx.x == 0) total = 0.0f;
  __syncthreads();
  if (threadIdx.x % 2 == 0) atomicAdd(&total, 1.0f);
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = total;
}

template <bool kFixed>
__global__ void fill_once(float* y) {
  float* tile = fastdiff::dynamic_smem<float>();
  if (kFixed || blockIdx.x == 0) tile[threadIdx.x] = kThreads / 2;
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = tile[kThreads - 1];
}

bool run(void (*kernel)(float*)) {
  std::vector<float> y(kBlocks);
  fastdiff::launch(kernel, kBlocks, kThreads, kThreads * sizeof(float), nullptr, y.data());
  return y == std::vector<float>(kBlocks, kThreads / 2);
}
bool run_count(bool fixed) {
  return run(fixed ? count<true> : count<false>);
}
bool run_fill(bool fixed) {
  return run(fixed ? fill_once<true> : fill_once<false>);
}

}  // namespace uninitialised
