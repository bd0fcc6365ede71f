// SPDX-License-Identifier: Apache-2.0
// What becomes of sums of int8 on CUDA, whichever tensor cores made them.
#pragma once

#include "quant/byte_tiles_wgmma.cuh"
#include "quant/epilogue.cuh"
#include "quant/int8_linear/int8_linear_math.h"

namespace fastdiff::int8_linear {

// int8_linear_wgmma.cu: products of rows that write_rows<true> has written.
void launch_wgmma(const Params& params, cudaStream_t stream);

namespace {

// Sums less what the zero points ask for, as float32.
__device__ __forceinline__ float linear_of(const Params& p, int64_t m, int64_t slot, int32_t sum) {
  uint32_t row = 0;
  if (p.zero_point != nullptr)
    row = static_cast<uint32_t>(p.row_sum[m]) -
          static_cast<uint32_t>(p.epilogue.inner) * static_cast<uint32_t>(p.row_zero[m]);
  const int32_t exact = quant::without_zero_points(sum, p.row_zero[m], p.column_sum[slot], row,
                                                   p.zero_point != nullptr ? p.zero_point[slot] : 0);
  return static_cast<float>(exact) * p.row_scale[m];
}

// Four columns of row m of a tile of panels from slot `first` on; sums: all of that row.
__device__ __forceinline__ void finish_sums(const Params& p, int64_t m, int64_t first, int quad,
                                            const int32_t* sums) {
  quant::finish_quad(p.epilogue, m, first, quad, [&](int at, float (&h)[kQuad]) {
    for (int j = 0; j < kQuad; ++j) h[j] = linear_of(p, m, first + at * kQuad + j, sums[at * kQuad + j]);
  });
}

}  // namespace
}  // namespace fastdiff::int8_linear
