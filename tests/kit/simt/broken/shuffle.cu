// SPDX-License-Identifier: Apache-2.0
// The mistakes: masks that name other lanes than those that arrive, in each of the ways there are.
#include "case.h"

namespace shuffle {

constexpr unsigned kFull = 0xffffffffu;
constexpr unsigned kLowHalf = 0x0000ffffu;

// Only half of the warp gets here.
template <bool kFixed>
__global__ void sum_of_half(float* y) {
  if (threadIdx.x >= 16) return;
  float sum = static_cast<float>(threadIdx.x);
  for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(kFixed ? kLowHalf : kFull, sum, d);
  if (threadIdx.x == 0) *y = sum;
}

// Each half names itself, or the other one.
template <bool kFixed>
__global__ void sum_of_both(float* y) {
  const bool low = threadIdx.x < 16;
  float sum = static_cast<float>(threadIdx.x % 16);
  for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(low == kFixed ? kLowHalf : ~kLowHalf, sum, d);
  if (threadIdx.x == 0) *y = sum;
}

// The masks are right, but the lane to read is outside.
template <bool kFixed>
__global__ void from_a_lane_outside(float* y) {
  if (threadIdx.x >= 16) return;
  const float value = __shfl_sync(kLowHalf, threadIdx.x == 7 ? 120.0f : 0.0f, kFixed ? 7 : 20);
  if (threadIdx.x == 0) *y = value;
}

// Lanes of one mask call different collectives.
template <bool kFixed>
__global__ void mixed(float* y) {
  const bool low = threadIdx.x < 16;
  const unsigned votes =
      kFixed || low ? __ballot_sync(kFull, low) : static_cast<unsigned>(__any_sync(kFull, low));
  if (threadIdx.x == 0) *y = votes == kLowHalf ? 120.0f : 0.0f;
}

bool run(void (*kernel)(float*)) {
  float y = 0;
  fastdiff::launch(kernel, 1, 32, 0, nullptr, &y);
  return y == 120.0f;
}
bool run_half(bool fixed) {
  return run(fixed ? sum_of_half<true> : sum_of_half<false>);
}
bool run_both(bool fixed) {
  return run(fixed ? sum_of_both<true> : sum_of_both<false>);
}
bool run_outside(bool fixed) {
  return run(fixed ? from_a_lane_outside<true> : from_a_lane_outside<false>);
}
bool run_mixed(bool fixed) {
  return run(fixed ? mixed<true> : mixed<false>);
}

}  // namespace shuffle
