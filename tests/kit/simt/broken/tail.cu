// SPDX-License-Identifier: Apache-2.0
// The mistakes: the last block reads, or writes, past the end of an array that is no multiple of the block.
#include "case.h"

namespace tail {

constexpr int kThreads = 64;
constexpr int kSize = 150;

// y[i] = x[i] + x[its neighbour in the pair]
template <bool kChecksRead, bool kChecksWrite>
__global__ void add_pairs(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float value = !kChecksRead || i < n ? x[i] : 0.0f;
  const float sum = value + __shfl_xor_sync(0xffffffffu, value, 1);
  if (!kChecksWrite || i < n) y[i] = sum;
}

bool run(void (*kernel)(const float*, float*, int)) {
  const std::vector<float> x = ramp(kSize);
  std::vector<float> y(kSize);
  fastdiff::launch(kernel, fastdiff::blocks_for(kSize, kThreads), kThreads, 0, nullptr, x.data(), y.data(),
                   kSize);
  for (int i = 0; i < kSize; ++i)
    if (y[i] != x[i] + x[i ^ 1]) return false;
  return true;
}
bool run_read(bool fixed) {
  return run(fixed ? add_pairs<true, true> : add_pairs<false, true>);
}
bool run_write(bool fixed) {
  return run(fixed ? add_pairs<true, true> : add_pairs<true, false>);
}

}  // namespace tail
