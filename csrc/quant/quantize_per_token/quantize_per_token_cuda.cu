// SPDX-License-Identifier: Apache-2.0
// quantize_per_token on CUDA: a warp a row.
#include "quant/norm_row.cuh"
#include "quant/quantize_per_token/quantize_per_token_math.h"

namespace fastdiff::quantize_per_token {
namespace {

using namespace quant;

template <int kTurns>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    quantise_rows(const Params p, const RowQuads quads) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (row >= p.rows.rows) return;  // the whole warp
  WarpRow<kTurns> y(p.rows, quads, row);
  uint32_t magnitude = 0;
  y.each([&](const float (&v)[kQuad], int64_t, int count) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (j < count) magnitude = larger(magnitude, magnitude_of(v[j]));
  });
  const SymmetricScale s = scale_of(warp_largest(magnitude));
  const int64_t at = p.rows.at(p.q, row);
  y.each([&](const float (&v)[kQuad], int64_t first, int count) {
    float q[kQuad];
#pragma unroll
    for (int j = 0; j < kQuad; ++j) q[j] = j < count && s.is_number ? mul(v[j], s.inverse) : 0.0f;
    store_four(p.q, quads.result, at, first, count, q);
  });
  if (threadIdx.x % kWarp == 0) static_cast<float*>(p.scale.data)[p.rows.at(p.scale, row)] = s.scale;
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  const dim3 grid(blocks_for(params.rows.rows, kRowWarps));
  with_turns(params.rows, [&](auto turns) {
    launch(&quantise_rows<turns.value>, grid, dim3(kRowThreads), 0, static_cast<cudaStream_t>(stream), params,
           row_quads(params.rows, params.q));
  });
}

}  // namespace fastdiff::quantize_per_token
