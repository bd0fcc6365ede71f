// SPDX-License-Identifier: Apache-2.0
// int8_conv2d on CUDA: ranges of parts of samples, then their scales, then bytes with channels last, then
// blocks of 8 warps that multiply 128 rows by 64 columns on the tensor cores and gather the rows from the
// bytes.
#include "core/launch.cuh"
#include "quant/epilogue.cuh"
#include "quant/int8_conv2d/int8_conv2d_math.h"
#include "quant/int8_tiles.cuh"

namespace fastdiff::int8_conv2d {
namespace {

using namespace quant;

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

struct Range {
  float least, greatest;

  __device__ void add(float x, float y) {
    least = x < least ? x : least;
    greatest = y > greatest ? y : greatest;
  }
};

// Of every thread's in the first one.
template <int kCount>
__device__ Range range_of_block(Range own) {
  __shared__ Range warps[kCount];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float low = __shfl_xor_sync(kAllLanes, own.least, step);
    const float high = __shfl_xor_sync(kAllLanes, own.greatest, step);
    own.add(low, high);
  }
  if (lane_of_warp() == 0) warps[warp_of_block()] = own;
  __syncthreads();
  for (int w = 0; w < kCount; ++w) own.add(warps[w].least, warps[w].greatest);
  return own;
}

__global__ void __launch_bounds__(kThreads) find_ranges(const Params p, unsigned parts) {
  const int64_t b = blockIdx.x / parts, part = blockIdx.x % parts, base = b * p.walk.sample_stride;
  const int64_t elements = p.image.channels * p.image.size[0] * p.image.size[1];
  const int64_t end = elements * (part + 1) / parts;
  Range own{0.0f, 0.0f};
  for (int64_t e = elements * part / parts + threadIdx.x; e < end; e += kThreads) {
    const int64_t at = base + offset_of(e, static_cast<int>(p.walk.dims), p.walk.size, p.walk.stride);
    const float x = load_as<float>(p.x, p.dtype, at);
    own.add(x, x);
  }
  own = range_of_block<kWarps>(own);
  if (threadIdx.x != 0) return;
  p.ranges[2 * blockIdx.x] = own.least;
  p.ranges[2 * blockIdx.x + 1] = own.greatest;
}

// A warp for each sample.
__global__ void __launch_bounds__(kWarp) set_scales(const Params p, unsigned parts) {
  const int64_t b = blockIdx.x;
  Range own{0.0f, 0.0f};
  for (unsigned n = threadIdx.x; p.finds_range() && n < parts; n += kWarp) {
    const float* const range = p.ranges + (b * parts + n) * 2;
    own.add(range[0], range[1]);
  }
  own = range_of_block<1>(own);
  if (threadIdx.x != 0) return;
  p.scales[b] = scale_of(p, b, own.least, own.greatest);
  p.broken[b] = 0;
}

// Pixels of a row of the padded image by channels, through shared memory: neighbours are read along whichever
// of the two lies together, and written along the channels.
constexpr int kSide = 32;

__global__ void __launch_bounds__(kThreads) write_bytes(const Params p, unsigned across) {
  __shared__ uint8_t tile[kSide][kSide + 4];
  const Image& image = p.image;
  const int64_t row = blockIdx.x / across, b = row / image.padded[0],
                line = row % image.padded[0] - image.padding[0];
  const int64_t first = static_cast<int64_t>(blockIdx.x % across) * kSide;
  const RowScale s = p.scales[b];
  const auto zero = static_cast<uint8_t>(padding_of(s));
  const bool is_line = line >= 0 && line < image.size[0], by_channel = p.strides[1] <= p.strides[3];
  for (int64_t c = 0; c < image.channels; c += kSide) {
    for (int n = static_cast<int>(threadIdx.x); n < kSide * kSide; n += kThreads) {
      const int i = by_channel ? n / kSide : n % kSide, j = by_channel ? n % kSide : n / kSide;
      const int64_t column = first + i - image.padding[1], channel = c + j;
      if (channel >= image.channels) continue;
      if (!is_line || column < 0 || column >= image.size[1]) {
        tile[i][j] = zero;
        continue;
      }
      const float x = load_as<float>(
          p.x, p.dtype,
          b * p.strides[0] + channel * p.strides[1] + line * p.strides[2] + column * p.strides[3]);
      if (p.is_int8) {
        tile[i][j] = static_cast<uint8_t>(static_cast<int32_t>(x));
        continue;
      }
      const float y = scaled(x, s);
      if (y != y) atomicOr(p.broken + b, 1);
      tile[i][j] = static_cast<uint8_t>(rounded_bits(y) - as_bits(kRoundingUnit) +
                                        static_cast<uint32_t>(s.zero_point));
    }
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < kSide * kSide; n += kThreads) {
      const int64_t pixel = first + n / kSide, channel = c + n % kSide;
      if (pixel < image.padded[1] && channel < image.channels)
        p.bytes[(row * image.padded[1] + pixel) * image.channels + channel] = tile[n / kSide][n % kSide];
    }
    __syncthreads();
  }
}

// Where elements of a row of the product are, from its first pixel on. By value: a reference to a kernel's
// parameters would copy all of them to the stack.
struct Taps {
  int channels, width, inner;
  int64_t down, right;  // from one tap to the next

  __device__ explicit Taps(const Image& image)
      : channels(static_cast<int>(image.channels)),
        width(static_cast<int>(image.kernel[1])),
        inner(static_cast<int>(image.inner())),
        down(image.dilation[0] * image.row()),
        right(image.dilation[1] * image.channels) {}

  __device__ int64_t offset(int k) const {
    const int tap = k / channels;
    return tap / width * down + tap % width * right + k % channels;
  }
};

// sum_k q of each row, a warp for each.
__global__ void __launch_bounds__(kThreads) sum_rows(const Params p) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_block();
  if (m >= p.epilogue.rows) return;
  const uint8_t* const row = p.bytes + p.image.at(m);
  const Taps taps(p.image);
  int32_t sum = 0;
  for (int k = lane_of_warp(); k < taps.inner; k += kWarp) sum += static_cast<int8_t>(row[taps.offset(k)]);
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane_of_warp() == 0) p.row_sum[m] = sum;
}

// Copies a thread's part of pieces of 128 rows: chunk threadIdx.x % 4 of every 64th row.
class PatchCopy {
  static constexpr int kSteps = kTileRows * 4 / kMmaThreads;

 public:
  __device__ PatchCopy(const Params& p, int64_t first) : taps_(p.image), bytes_(p.bytes) {
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const int64_t m = first + row(n);
      from_[n] = m < p.epilogue.rows ? p.bytes + p.image.at(m) : nullptr;
    }
  }

  __device__ void operator()(int64_t piece, unsigned char* stage) const {
    const int chunk = static_cast<int>(threadIdx.x) % 4, k = static_cast<int>(piece) * kPiece + 16 * chunk;
    if (taps_.channels % 16 == 0) {  // so that a chunk is of one tap
      const int64_t at = k < taps_.inner ? taps_.offset(k) : 0;
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
        const bool there = k < taps_.inner && from_[n] != nullptr;
        ptx::cp_async<16>(stage + chunk_of_row(row(n), chunk), there ? from_[n] + at : bytes_,
                          there ? 16 : 0);
      }
      return;
    }
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      uint32_t words[4] = {};
#pragma unroll
      for (int j = 0; j < 16; ++j)
        if (from_[n] != nullptr && k + j < taps_.inner)
          words[j / 4] |= static_cast<uint32_t>(from_[n][taps_.offset(k + j)]) << (j % 4 * 8);
      *reinterpret_cast<uint4*>(stage + chunk_of_row(row(n), chunk)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

 private:
  __device__ static int row(int n) { return static_cast<int>(threadIdx.x) / 4 + n * (kMmaThreads / 4); }

  const Taps taps_;
  const uint8_t* const bytes_;
  const uint8_t* from_[kSteps];
};

__global__ void __launch_bounds__(kMmaThreads) multiply(const Params p, unsigned columns) {
  const int64_t first = static_cast<int64_t>(blockIdx.x / columns) * kTileRows;
  const int64_t panel = static_cast<int64_t>(blockIdx.x % columns) * kTilePanels, slot = panel * kPanel;
  const BytePanels weight{p.weight, p.epilogue.slots / kPanel, p.pieces};
  const int32_t* const sums = tile_sums(weight, panel, PatchCopy(p, first));
  constexpr int kQuads = kTileColumns / kQuad;
  for (int n = static_cast<int>(threadIdx.x); n < kTileRows * kQuads; n += kMmaThreads) {
    const int r = n / kQuads;
    const int64_t m = first + r, b = m / p.epilogue.rows_of_sample;
    finish_quad(p.epilogue, m, slot, n % kQuads, [&](int quad, float (&h)[kQuad]) {
      const RowScale& s = p.scales[b];
      const float scale = p.broken[b] != 0 ? bits_as<float>(0x7fc00000u) : s.scale;
      uint32_t row = 0;
      if (p.zero_point != nullptr)
        row = static_cast<uint32_t>(p.row_sum[m]) -
              static_cast<uint32_t>(p.epilogue.inner) * static_cast<uint32_t>(s.zero_point);
      for (int j = 0; j < kQuad; ++j) {
        const int64_t at = slot + quad * kQuad + j;
        const int32_t sum =
            without_zero_points(sums[r * kSumsPitch + quad * kQuad + j], s.zero_point, p.column_sum[at], row,
                                p.zero_point != nullptr ? p.zero_point[at] : 0);
        h[j] = static_cast<float>(sum) * scale;
      }
    });
  }
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  const auto at = static_cast<cudaStream_t>(stream);
  const Image& image = params.image;
  const Epilogue& e = params.epilogue;
  launch_vectors(e, at);
  const auto parts = static_cast<unsigned>(parts_of_range(params));
  if (params.finds_range())
    launch(find_ranges, dim3(blocks_for(image.batch * parts, 1)), dim3(kThreads), 0, at, params, parts);
  launch(set_scales, dim3(blocks_for(image.batch, 1)), dim3(kWarp), 0, at, params, parts);
  const unsigned across = blocks_for(image.padded[1], kSide);
  launch(write_bytes, dim3(blocks_for(image.batch * image.padded[0] * across, 1)), dim3(kThreads), 0, at,
         params, across);
  if (params.zero_point != nullptr)
    launch(sum_rows, dim3(blocks_for(e.rows, kWarps)), dim3(kThreads), 0, at, params);
  const unsigned columns = blocks_for(e.slots, kTileColumns);
  const int64_t tiles = (e.rows + kTileRows - 1) / kTileRows;
  launch(multiply, dim3(blocks_for(tiles * columns, 1)), dim3(kMmaThreads), kTileSmem, at, params, columns);
}

}  // namespace fastdiff::int8_conv2d
