// SPDX-License-Identifier: Apache-2.0
// int8_linear on CUDA: a block quantises a row, then blocks of 8 warps multiply 128 rows by 64 columns on the
// tensor cores; with up to 16 rows, 16 by 64, and the pieces along K are shared out among the warps. On
// Hopper many rows go by int8_linear_wgmma.cu.
#include "quant/int8_linear/int8_linear_cuda.cuh"
#include "quant/int8_tiles.cuh"
#include "quant/rows.cuh"

namespace fastdiff::int8_linear {
namespace {

using namespace quant;

// Where element k of row m is.
template <bool kWide>
__device__ __forceinline__ int64_t place_of(const Params& p, int64_t m, int64_t k) {
  return kWide ? swizzled_place(p.pieces, m, k)
               : (m / 16 * p.pieces * 16 + m % 16 + k / kPiece * 16) * kPiece + k % kPiece;
}

template <bool kWide>
__global__ void __launch_bounds__(kRowThreads) write_rows(const Params p) {
  __shared__ int32_t total;
  __shared__ int broken;
  const int64_t m = blockIdx.x, count = p.epilogue.inner;
  const int64_t pieces = kWide ? wide_pieces(p.pieces) : p.pieces;
  if (m >= p.epilogue.rows) {  // fills up a tile
    for (int64_t k = threadIdx.x; k < pieces * kPiece; k += kRowThreads) p.q[place_of<kWide>(p, m, k)] = 0;
    return;
  }
  const int64_t at = p.x.at(m);
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
  int32_t sum = 0;
  for (int64_t k = threadIdx.x; k < pieces * kPiece; k += kRowThreads) {
    int32_t q = 0;
    if (k < count && p.is_int8) {
      q = static_cast<int32_t>(stored(k));
    } else if (k < count) {
      const float x = scaled(stored(k), s);
      if (x != x) atomicOr(&broken, 1);
      q = static_cast<int32_t>(rounded_bits(x) - as_bits(kRoundingUnit)) + s.zero_point;
    }
    sum += q;
    p.q[place_of<kWide>(p, m, k)] = static_cast<uint8_t>(q);
  }
  atomicAdd(&total, sum);
  __syncthreads();
  if (broken != 0) {  // the whole row: no number
    s.scale = bits_as<float>(0x7fc00000u);
    for (int64_t k = threadIdx.x; k < count; k += kRowThreads)
      p.q[place_of<kWide>(p, m, k)] = static_cast<uint8_t>(s.zero_point);
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
    finish_sums(p, m, slot, n % kQuads, sums + r * kSumsPitch);
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
  const auto rows = [&](int unit) { return dim3(blocks_for(round_up(params.epilogue.rows, unit), 1)); };
  if (is_wide_tile(params.epilogue.rows) && on_sm90a()) {
    launch(write_rows<true>, rows(kWideRows), dim3(kRowThreads), 0, at, params);
    return launch_wgmma(params, at);
  }
  launch(write_rows<false>, rows(16), dim3(kRowThreads), 0, at, params);
  if (params.epilogue.rows <= 16) {
    launch_tiles<16>(params, 16 * kSumsPitch * sizeof(int32_t), at);
  } else {
    launch_tiles<kTileRows>(params, kTileSmem, at);
  }
}

}  // namespace fastdiff::int8_linear
