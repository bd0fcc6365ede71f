// SPDX-License-Identifier: Apache-2.0
// int8_linear on CUDA: a block quantises a row, then blocks of 8 warps multiply 128 rows by 64 columns on the
// tensor cores; with up to 16 rows, 16 by 64, and the pieces along K are shared out among the warps.
#include "core/launch.cuh"
#include "quant/int8_linear/int8_linear_math.h"
#include "quant/int8_tiles.cuh"
#include "quant/rows.cuh"

namespace fastdiff::int8_linear {
namespace {

using namespace quant;

__global__ void __launch_bounds__(kRowThreads) write_rows(const Params p) {
  __shared__ int32_t total;
  __shared__ int broken;
  const int64_t m = blockIdx.x, count = p.epilogue.inner, at = p.x.at(m);
  const auto stored = [&](int64_t k) { return load_as<float>(p.x.data, p.x.dtype, at + k * p.x.element); };
  if (threadIdx.x == 0) total = 0, broken = 0;
  RowScale s;
  if (p.x_scale.data != nullptr) {
    s = given_scale(p, m);
  } else {
    const Range range = range_of_row(count, stored);
    s = dynamic_scale(range.least, range.greatest, p.is_signed);
  }
  __syncthreads();
  uint8_t* const row = p.q + (m / 16 * p.pieces * 16 + m % 16) * kPiece;
  int32_t sum = 0;
  for (int64_t k = threadIdx.x; k < p.pieces * kPiece; k += kRowThreads) {
    int32_t q = 0;
    if (k < count && p.is_int8) {
      q = static_cast<int32_t>(stored(k));
    } else if (k < count) {
      const float x = scaled(stored(k), s);
      if (x != x) atomicOr(&broken, 1);
      q = static_cast<int32_t>(rounded_bits(x) - as_bits(kRoundingUnit)) + s.zero_point;
    }
    sum += q;
    row[k / kPiece * (16 * kPiece) + k % kPiece] = static_cast<uint8_t>(q);
  }
  atomicAdd(&total, sum);
  __syncthreads();
  if (broken != 0) {  // the whole row: no number
    s.scale = bits_as<float>(0x7fc00000u);
    for (int64_t k = threadIdx.x; k < count; k += kRowThreads)
      row[k / kPiece * (16 * kPiece) + k % kPiece] = static_cast<uint8_t>(s.zero_point);
  }
  if (threadIdx.x == 0) {
    p.row_scale[m] = s.scale;
    p.row_zero[m] = s.zero_point;
    p.row_sum[m] = broken != 0 ? static_cast<int32_t>(s.zero_point * count) : total;
  }
  shrink_row(p.epilogue, m, kRowWarps, [&](int64_t k) {
    const float x = stored(k);
    return p.is_int8 ? (x - static_cast<float>(s.zero_point)) * s.scale : x;
  });
}

// Sums less what the zero points ask for, as float32.
__device__ __forceinline__ float linear_of(const Params& p, int64_t m, int64_t slot, int32_t sum) {
  uint32_t row = 0;
  if (p.zero_point != nullptr)
    row = static_cast<uint32_t>(p.row_sum[m]) -
          static_cast<uint32_t>(p.epilogue.inner) * static_cast<uint32_t>(p.row_zero[m]);
  const int32_t exact = without_zero_points(sum, p.row_zero[m], p.column_sum[slot], row,
                                            p.zero_point != nullptr ? p.zero_point[slot] : 0);
  return static_cast<float>(exact) * p.row_scale[m];
}

template <int kRows>
__global__ void __launch_bounds__(kMmaThreads) multiply(const Params p, unsigned columns) {
  const int64_t group = blockIdx.x / columns * (kRows / 16), panel = blockIdx.x % columns * kTilePanels;
  const ByteFactors factors{p.q, p.weight, p.padded_rows() / 16, p.epilogue.slots / kPanel, p.pieces};
  const int32_t* const sums =
      kRows == 16 ? group_sums(factors, group, panel) : tile_sums(factors, group, panel);
  constexpr int kQuads = kTileColumns / kQuad;
  for (int n = static_cast<int>(threadIdx.x); n < kRows * kQuads; n += kMmaThreads) {
    const int r = n / kQuads;
    const int64_t m = group * 16 + r, slot = panel * kPanel;
    finish_quad(p.epilogue, m, slot, n % kQuads, [&](int quad, float (&h)[kQuad]) {
      for (int j = 0; j < kQuad; ++j)
        h[j] = linear_of(p, m, slot + quad * kQuad + j, sums[r * kSumsPitch + quad * kQuad + j]);
    });
  }
}

template <int kRows>
void launch_tiles(const Params& p, size_t smem, cudaStream_t stream) {
  const unsigned columns = blocks_for(p.epilogue.slots, kTileColumns);
  const int64_t rows = (p.epilogue.rows + kRows - 1) / kRows;
  launch(multiply<kRows>, dim3(blocks_for(rows * columns, 1)), dim3(kMmaThreads), smem, stream, p, columns);
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  const auto at = static_cast<cudaStream_t>(stream);
  launch_vectors(params.epilogue, at);
  launch(write_rows, dim3(blocks_for(params.epilogue.rows, 1)), dim3(kRowThreads), 0, at, params);
  if (params.epilogue.rows <= 16) {
    launch_tiles<16>(params, 16 * kSumsPitch * sizeof(int32_t), at);
  } else {
    launch_tiles<kTileRows>(params, kTileSmem, at);
  }
}

}  // namespace fastdiff::int8_linear
