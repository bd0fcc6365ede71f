// SPDX-License-Identifier: Apache-2.0
// A row by a block of threads: its range.
#pragma once

#include "quant/epilogue.cuh"

namespace fastdiff::quant {
namespace {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;

struct Range {
  float least, greatest;
};

// Of a row and 0, in every thread.
template <class X>
__device__ Range range_of_row(int64_t count, const X& x) {
  __shared__ float least[kRowWarps], greatest[kRowWarps];
  Range own{0.0f, 0.0f};
  for (int64_t k = threadIdx.x; k < count; k += kRowThreads) {
    own.least = x(k) < own.least ? x(k) : own.least;
    own.greatest = x(k) > own.greatest ? x(k) : own.greatest;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float low = __shfl_xor_sync(kAllLanes, own.least, step);
    const float high = __shfl_xor_sync(kAllLanes, own.greatest, step);
    own.least = low < own.least ? low : own.least;
    own.greatest = high > own.greatest ? high : own.greatest;
  }
  if (lane_of_warp() == 0) least[warp_of_block()] = own.least, greatest[warp_of_block()] = own.greatest;
  __syncthreads();
  for (int w = 0; w < kRowWarps; ++w) {
    own.least = least[w] < own.least ? least[w] : own.least;
    own.greatest = greatest[w] > own.greatest ? greatest[w] : own.greatest;
  }
  return own;
}

}  // namespace
}  // namespace fastdiff::quant
