// SPDX-License-Identifier: Apache-2.0
// weight_linear on CUDA: a block copies a row to tiles, or rounds it to e4m3, then blocks multiply on the
// tensor cores, or in float32 where x is, or where weights of bfloat16 meet float16, which cannot hold them.
// On Hopper many rounded rows go by weight_linear_wgmma.cu.
#include "quant/rows.cuh"
#include "quant/weight_linear/weight_linear_mma.cuh"
#include "quant/weight_linear/weight_linear_wgmma.cuh"

namespace fastdiff::weight_linear {
namespace {

bool multiplies_floats(const Params& p) {
  return !p.rounds && (p.x.dtype == DType::f32 || (p.x.dtype == DType::f16 && p.scheme == Scheme::bf16));
}

// Where element k of row m is in tiles [M / 16][steps][16][32]; an even number of steps.
__device__ __forceinline__ int64_t place_of(const Params& p, int64_t m, int64_t k) {
  return ((m / 16 * (2 * pieces_of(p)) + k / kStep) * 16 + m % 16) * kStep + k % kStep;
}

// Row m as part of tiles of its dtype or of float32; those behind the last one fill up a tile.
__global__ void __launch_bounds__(kRowThreads) write_rows(const Params p, bool as_floats) {
  const int64_t m = blockIdx.x, count = m < p.epilogue.rows ? p.epilogue.inner : 0;
  const int64_t at = count > 0 ? p.x.at(m) : 0;
  const auto stored = [&](int64_t k) { return load_as<float>(p.x.data, p.x.dtype, at + k * p.x.element); };
  for (int64_t k = threadIdx.x; k < pieces_of(p) * kPiece; k += kRowThreads) {
    const float x = k < count ? stored(k) : 0.0f;
    store_as(p.blocks, as_floats ? DType::f32 : p.x.dtype, place_of(p, m, k), x);
  }
  if (m >= p.epilogue.rows) return;
  shrink_row(p.epilogue, m, kRowWarps, stored);
}

// Row m as part of tiles of e4m3, and its scale; of one with NaN or infinity, which no scale fits, NaN and 0.
template <bool kWide>
__global__ void __launch_bounds__(kRowThreads) round_rows(const Params p) {
  __shared__ int broken;
  const int64_t m = blockIdx.x, count = p.epilogue.inner;
  auto* const bytes = reinterpret_cast<uint8_t*>(p.blocks);
  const auto place = [&](int64_t k) {
    return kWide ? swizzled_place(pieces_of(p), m, k) : place_of(p, m, k);
  };
  const int64_t pieces = kWide ? wide_pieces(pieces_of(p)) : pieces_of(p);
  if (m >= p.epilogue.rows) {  // fills up a tile
    for (int64_t k = threadIdx.x; k < pieces * kPiece; k += kRowThreads) bytes[place(k)] = 0;
    return;
  }
  const int64_t at = p.x.at(m);
  const auto stored = [&](int64_t k) { return given(p, at + k * p.x.element); };
  if (threadIdx.x == 0) broken = 0;
  Range range{0.0f, 0.0f};
  if (p.x_scale.data == nullptr) range = range_of_row(count, stored);
  RowScale s = scale_of_row(p, m, range.greatest > -range.least ? range.greatest : -range.least);
  __syncthreads();
  for (int64_t k = threadIdx.x; k < pieces * kPiece; k += kRowThreads) {
    const float q = k < count ? nearest_e4m3(stored(k) * s.inverse) : 0.0f;
    if (q != q) atomicOr(&broken, 1);
    bytes[place(k)] = byte_of_e4m3(q);
  }
  __syncthreads();
  if (broken != 0) {
    s.scale = bits_as<float>(0x7fc00000u);
    for (int64_t k = threadIdx.x; k < count; k += kRowThreads) bytes[place(k)] = 0;
  }
  if (threadIdx.x == 0) p.row_scale[m] = s.scale;
  const float unit = p.x.dtype == DType::u8 ? s.scale : 1.0f;
  shrink_row(p.epilogue, m, kRowWarps, [&](int64_t k) { return stored(k) * unit; });
}

// ---- in float32: 64 rows by 64 columns, a thread has 4 by 4 of them ---------------------------------

constexpr int kFloatThreads = 256, kFloatRows = 64;

template <Scheme kScheme, bool kHasZero>
__global__ void __launch_bounds__(kFloatThreads) multiply_floats(const Params p, unsigned columns) {
  constexpr int kWords = words_of_eight(kScheme), kPitch = kTilePitch;
  __shared__ float x[kFloatRows][kStep + 1], w[kStep][kPitch], linear[kFloatRows][kPitch];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.x / columns * (kFloatRows / 16), panel = blockIdx.x % columns * kTilePanels;
  const int64_t groups = (p.epilogue.rows + 15) / 16, steps = steps_of(p), slots = p.epilogue.slots;
  // A thread decodes eight neighbours along K of a column.
  const int own = thread % kTileColumns, eight = thread / kTileColumns;
  const int64_t slot = panel * kPanel + own;
  const char* const words = p.weight + slot / kPanel * p.panel_bytes + own % kPanel * 4;
  const int r0 = thread / 16 * 4, c0 = thread % 16 * 4;
  float sum[4][4] = {};
  for (int64_t step = 0; step < steps; ++step) {
    for (int n = thread; n < kFloatRows * kStep; n += kFloatThreads) {
      const int r = n / kStep, k = n % kStep;
      const int64_t tile = (group + r / 16) * (2 * pieces_of(p)) + step;
      x[r][k] = group + r / 16 < groups ? p.blocks[(tile * 16 + r % 16) * kStep + k] : 0.0f;
    }
    if (slot < slots) {
      const int64_t at = (kScheme == Scheme::int4 ? step * kStep / p.group : 0) * slots + slot;
      const float scale = kScheme == Scheme::int4 ? p.scale[at] : 0.0f;
      float zero = 0.0f;
      if constexpr (kHasZero)
        zero = kScheme == Scheme::int4 ? p.zero_point[at] : static_cast<float>(p.integers[at]);
      const auto word = [&](int i) {
        return *reinterpret_cast<const uint32_t*>(words + ((step * 4 + eight) * kWords + i) * kWordRow);
      };
      const auto put = [&](int k, float q) {
        const float weight = weight_of<kHasZero>(q, zero);
        w[eight * kEight + k][own] = kScheme == Scheme::int4 ? weight * scale : weight;
      };
      put(0, stored<kScheme, 0>(word)), put(1, stored<kScheme, 1>(word));
      put(2, stored<kScheme, 2>(word)), put(3, stored<kScheme, 3>(word));
      put(4, stored<kScheme, 4>(word)), put(5, stored<kScheme, 5>(word));
      put(6, stored<kScheme, 6>(word)), put(7, stored<kScheme, 7>(word));
    } else {
      for (int k = 0; k < kEight; ++k) w[eight * kEight + k][own] = 0.0f;
    }
    __syncthreads();
    for (int k = 0; k < kStep; ++k)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) sum[i][j] = fma_(x[r0 + i][k], w[k][c0 + j], sum[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) linear[r0 + i][c0 + j] = sum[i][j];
  __syncthreads();
  constexpr int kQuads = kTileColumns / kQuad;
  for (int n = thread; n < kFloatRows * kQuads; n += kFloatThreads) {
    const int r = n / kQuads;
    finish_quad(p.epilogue, group * 16 + r, panel * kPanel, n % kQuads, [&](int quad, float (&h)[kQuad]) {
      for (int j = 0; j < kQuad; ++j) h[j] = linear[r][quad * kQuad + j];
    });
  }
}

// ---- launch -----------------------------------------------------------------------------------------

template <Scheme kScheme, bool kHasZero>
void launch_floats(const Params& p, cudaStream_t stream) {
  const unsigned columns = blocks_for(p.epilogue.slots, kTileColumns);
  const int64_t rows = (p.epilogue.rows + kFloatRows - 1) / kFloatRows;
  launch(multiply_floats<kScheme, kHasZero>, dim3(blocks_for(rows * columns, 1)), dim3(kFloatThreads), 0,
         stream, p, columns);
}

template <Scheme kScheme, bool kHasZero, DType kRows>
void launch_mma(const Params& p, cudaStream_t stream) {
  if (p.epilogue.rows <= kFewRows) {
    launch(multiply_few<kScheme, kHasZero, kRows>, dim3(blocks_for(p.epilogue.slots, kFewColumns)),
           dim3(kMmaThreads), 0, stream, p);
    return;
  }
  const unsigned columns = blocks_for(p.epilogue.slots, kTileColumns);
  const int64_t rows = (p.epilogue.rows + kTileRows - 1) / kTileRows;
  launch(multiply_tile<kScheme, kHasZero, kRows>, dim3(blocks_for(rows * columns, 1)), dim3(kMmaThreads),
         Stage<kScheme, kRows>::kSmem, stream, p, columns);
}

template <Scheme kScheme, bool kHasZero>
void launch_products(const Params& p, cudaStream_t stream) {
  if (multiplies_floats(p)) return launch_floats<kScheme, kHasZero>(p, stream);
  if (p.x.dtype == DType::bf16) return launch_mma<kScheme, kHasZero, DType::bf16>(p, stream);
  if constexpr (kScheme != Scheme::bf16) launch_mma<kScheme, kHasZero, DType::f16>(p, stream);
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  const auto at = static_cast<cudaStream_t>(stream);
  launch_vectors(params.epilogue, at);
  const auto rows = [&](int unit) { return dim3(blocks_for(round_up(params.epilogue.rows, unit), 1)); };
  if (params.rounds && is_wide_tile(params.epilogue.rows) && on_sm90a()) {
    launch(round_rows<true>, rows(kWideRows), dim3(kRowThreads), 0, at, params);
    return launch_wgmma(params, at);
  }
  if (params.rounds) {
    launch(round_rows<false>, rows(16), dim3(kRowThreads), 0, at, params);
    return launch_mma<Scheme::fp8, false, DType::u8>(params, at);
  }
  launch(write_rows, rows(16), dim3(kRowThreads), 0, at, params, multiplies_floats(params));
  if (params.scheme == Scheme::fp8) return launch_products<Scheme::fp8, false>(params, at);
  if (params.scheme == Scheme::bf16) return launch_products<Scheme::bf16, false>(params, at);
  if (params.scheme == Scheme::int8)
    return params.integers != nullptr ? launch_products<Scheme::int8, true>(params, at)
                                      : launch_products<Scheme::int8, false>(params, at);
  return params.zero_point != nullptr ? launch_products<Scheme::int4, true>(params, at)
                                      : launch_products<Scheme::int4, false>(params, at);
}

}  // namespace fastdiff::weight_linear
