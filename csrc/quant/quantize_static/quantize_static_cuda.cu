// SPDX-License-Identifier: Apache-2.0
// quantize_static on CUDA: the loop of the family over elements, or a warp a row where they are normed.
#include "quant/affine.cuh"
#include "quant/norm_row.cuh"
#include "quant/quantize_static/quantize_static_math.h"

namespace fastdiff::quantize_static {
namespace {

using namespace quant;

template <int kTurns>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    quantise_rows(const Params p, const RowQuads quads) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (row >= p.rows.rows) return;  // the whole warp
  const Affine& a = p.elements.affine;
  Point<float> point = point_of_step(a, checked_step(a, step_of_row(p, row), Formula::kRefusal));
  WarpRow<kTurns> y(p.rows, quads, row);
  const int64_t at = p.rows.at(p.q, row);
  y.each([&](const float (&v)[kQuad], int64_t first, int count) {
    float q[kQuad] = {};
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (j >= count) continue;
      point.x = v[j];
      q[j] = Formula{}(point);
    }
    store_four(p.q, quads.result, at, first, count, q);
  });
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  if (!params.by_rows) return launch_elements<Formula>(params.elements, static_cast<cudaStream_t>(stream));
  const dim3 grid(blocks_for(params.rows.rows, kRowWarps));
  with_turns(params.rows, [&](auto turns) {
    launch(&quantise_rows<turns.value>, grid, dim3(kRowThreads), 0, static_cast<cudaStream_t>(stream), params,
           row_quads(params.rows, params.q));
  });
}

}  // namespace fastdiff::quantize_static
