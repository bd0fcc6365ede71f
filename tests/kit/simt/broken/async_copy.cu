// SPDX-License-Identifier: Apache-2.0
// The mistakes: cp.async without a wait, and with the wait behind the barrier instead of before it.
#include "case.h"
#include "core/ptx.cuh"

namespace async_copy {

constexpr int kThreads = 64;

enum class Order { wait_then_barrier, barrier_only, barrier_then_wait };

template <Order kOrder>
__global__ void reverse(const float* x, float* y) {
  float* tile = fastdiff::dynamic_smem<float>();
  fastdiff::ptx::cp_async<4>(tile + threadIdx.x, x + threadIdx.x);
  fastdiff::ptx::cp_async_commit();
  if constexpr (kOrder == Order::wait_then_barrier) fastdiff::ptx::cp_async_wait<0>();
  __syncthreads();
  if constexpr (kOrder == Order::barrier_then_wait) fastdiff::ptx::cp_async_wait<0>();
  y[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

bool run(void (*kernel)(const float*, float*)) {
  const std::vector<float> x = ramp(kThreads), expected(x.rbegin(), x.rend());
  std::vector<float> y(kThreads);
  fastdiff::launch(kernel, 1, kThreads, kThreads * sizeof(float), nullptr, x.data(), y.data());
  return y == expected;
}
bool run_wait(bool fixed) {
  return run(fixed ? reverse<Order::wait_then_barrier> : reverse<Order::barrier_only>);
}
bool run_order(bool fixed) {
  return run(fixed ? reverse<Order::wait_then_barrier> : reverse<Order::barrier_then_wait>);
}

}  // namespace async_copy
