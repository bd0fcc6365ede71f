// SPDX-License-Identifier: Apache-2.0
// The mistake: it trusts that a warp runs in lock-step, which has not been so since Volta.
#include "case.h"

namespace missing_syncwarp {

constexpr int kLanes = 32;

template <bool kFixed>
__global__ void sum(const float* x, float* y) {
  __shared__ float partial[kLanes];
  const unsigned lane = threadIdx.x;
  partial[lane] = x[lane];
  for (unsigned half = kLanes / 2; half > 0; half /= 2) {
    if constexpr (kFixed) __syncwarp();
    if (lane < half) partial[lane] += partial[lane + half];
  }
  if (lane == 0) *y = partial[0];
}

bool run(bool fixed) {
  const std::vector<float> x = ramp(kLanes);
  float y = 0;
  fastdiff::launch(fixed ? sum<true> : sum<false>, 1, kLanes, 0, nullptr, x.data(), &y);
  return y == kLanes * (kLanes - 1) / 2;
}

}  // namespace missing_syncwarp
