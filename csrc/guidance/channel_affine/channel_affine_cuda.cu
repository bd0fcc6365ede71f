// SPDX-License-Identifier: Apache-2.0
// channel_affine on CUDA. A warp measures a chunk, which it holds in registers.
//
//   one_block      small planes: a block measures a plane and its style, and writes the plane. Samples that
//                  share a style measure it each for itself, but read it from the L2 cache.
//   larger planes: four launches: the chunks of the style, those of x, then a block per plane adds them up,
//                  then the result.
#include "core/walk.cuh"
#include "guidance/channel_affine/channel_affine_math.h"

namespace fastdiff::channel_affine {
namespace {

constexpr int kThreads = kSlots;  // of every block: where chunks are added, one per slot
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTurns = kChunk / kLanes;
constexpr int64_t kTile = 4 * kThreads * kQuad;  // elements that a block writes
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kLanes == kWarp * kQuad, "a warp's turn is one element for each lane");

__device__ int64_t base_of(const Planes& t, int64_t plane, int64_t channels) {
  return plane / channels * t.sample_stride + plane % channels * t.channel_stride;
}

// ---- a chunk, by a warp ---------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void load_four(const Planes& t, bool quads, int64_t base, int64_t first, int count,
                                          T (&x)[kQuad]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (quads && count == kQuad) return load_quad(t.data, t.dtype, base + first, x);
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) x[j] = load_as<T>(t.data, t.dtype, base + offset_of(first + j, t.dims, t.size, t.stride));
}

// The sum over the lanes of reduce.h, in the warp's lane 0.
template <class T>
__device__ T add_lanes(T (&sum)[kQuad]) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    for (int j = 0; j < kQuad; ++j)
      sum[j] = sum[j] + __shfl_down_sync(kAllLanes, sum[j], static_cast<unsigned>(step));
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// All lanes of a warp call it; the piece is that of lane 0.
template <class T>
__device__ Piece measure_chunk(const Planes& t, bool quads, int64_t base, int64_t chunk) {
  const int64_t first = chunk * kChunk + threadIdx.x % kWarp * kQuad;
  const auto count = [&](int turn) {
    return static_cast<int>(max(int64_t{0}, min(t.numel - first - turn * kLanes, int64_t{kQuad})));
  };
  T x[kTurns][kQuad], sum[kQuad] = {}, squares[kQuad] = {};
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn)
    load_four(t, quads, base, first + turn * kLanes, count(turn), x[turn]);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn)
    for (int j = 0; j < kQuad; ++j)
      if (j < count(turn)) sum[j] = sum[j] + x[turn][j];
  const T mean = __shfl_sync(kAllLanes, div(add_lanes(sum), static_cast<T>(count_of(chunk, t.numel))), 0);
  for (int j = 0; j < kQuad; ++j) sum[j] = T(0);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn)
    for (int j = 0; j < kQuad; ++j) {
      if (j >= count(turn)) continue;
      const T d = x[turn][j] - mean;
      sum[j] = sum[j] + d;
      squares[j] = fma_(d, d, squares[j]);
    }
  const T left = add_lanes(sum);
  return {static_cast<double>(mean), static_cast<double>(left), static_cast<double>(add_lanes(squares))};
}

// ---- a plane, by a block --------------------------------------------------------------------------

// The sum of term(chunk), in the order of reduce.h, for every thread of the block.
template <class Term>
__device__ double sum_over(int64_t chunks, double (&slot)[kSlots], const Term& term) {
  const int own = threadIdx.x;
  double sum = 0;
  for (int64_t c = own; c < chunks; c += kSlots) sum += term(c);
  slot[own] = sum;
  for (int half = reduce::used_slots(chunks) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own < half) slot[own] = slot[own] + slot[own + half];
  }
  __syncthreads();
  sum = slot[0];
  __syncthreads();  // or the next sum would overwrite what is still to be read
  return sum;
}

__device__ Moments moments_of(const Piece* pieces, int64_t numel, double (&slot)[kSlots]) {
  const int64_t chunks = chunks_of(numel);
  const AboutNumber guess{pieces, numel, first_guess(pieces, numel)};
  const double sum = sum_over(chunks, slot, [&](int64_t c) { return guess.sum(c); });
  const AboutNumber mean{pieces, numel, mean_of(guess.number, sum, numel)};
  const double squares = sum_over(chunks, slot, [&](int64_t c) { return mean.squares(c); });
  return {mean.number, deviation_of(squares, numel)};
}

// Which planes are dense and aligned, so that four elements are one access.
struct Quads {
  bool x, y, style;
};

template <class T>
__device__ void write_elements(const Params& p, const Quads& quads, int64_t plane, const Affine& a,
                               int64_t begin, int64_t end) {
  const Planes &x = p.x, &y = p.y;
  const int64_t x_base = base_of(x, plane, p.channels), y_base = base_of(y, plane, p.channels);
  const T center = static_cast<T>(a.center), scale = static_cast<T>(a.scale),
          offset = static_cast<T>(a.offset);
  for (int64_t first = begin + threadIdx.x * kQuad; first < end; first += kThreads * kQuad) {
    const int count = static_cast<int>(min(end - first, int64_t{kQuad}));
    T value[kQuad];
    load_four(x, quads.x, x_base, first, count, value);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (j < count) value[j] = apply(center, scale, offset, value[j]);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (quads.y && count == kQuad) {
        store_quad(y.data, y.dtype, y_base + first, value);
        continue;
      }
    }
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (j < count)
        store_as<T>(y.data, y.dtype, y_base + offset_of(first + j, y.dims, y.size, y.stride), value[j]);
  }
}

// ---- kernels: T, S are the arithmetic types of x and of the style ----------------------------------

struct OnePlane {
  Piece pieces[reduce::kOneBlockChunks];
  double slot[kSlots];
};

template <class T>
__device__ Moments measure_plane(const Planes& t, bool quads, int64_t base, OnePlane& shared) {
  for (int64_t chunk = threadIdx.x / kWarp; chunk < chunks_of(t.numel); chunk += kWarps) {
    const Piece piece = measure_chunk<T>(t, quads, base, chunk);
    if (threadIdx.x % kWarp == 0) shared.pieces[chunk] = piece;
  }
  __syncthreads();
  const Moments moments = moments_of(shared.pieces, t.numel, shared.slot);
  return moments;
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads) one_block(const Params p, const Quads quads) {
  __shared__ OnePlane shared;
  const int64_t plane = blockIdx.x;
  Moments target;
  if (has_style(p)) {
    const int64_t other = p.style_samples == 1 ? plane % p.channels : plane;
    target = measure_plane<S>(p.style, quads.style, base_of(p.style, other, p.channels), shared);
  } else {
    target = given(p, plane / p.channels, plane % p.channels);
  }
  const Moments content = measure_plane<T>(p.x, quads.x, base_of(p.x, plane, p.channels), shared);
  // Every element has been measured: the result may be x itself.
  write_elements<T>(p, quads, plane, affine<T>(p, content, target), 0, p.x.numel);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    measure_chunks(const Planes t, bool quads, int64_t planes, int64_t channels, Piece* pieces) {
  const int64_t chunks = chunks_of(t.numel);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (own >= planes * chunks) return;  // the whole warp
  const Piece piece = measure_chunk<T>(t, quads, base_of(t, own / chunks, channels), own % chunks);
  if (threadIdx.x % kWarp == 0) pieces[own] = piece;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_chunks(const Params p, const Piece* of_style, const Piece* of_x, Affine* result) {
  __shared__ double slot[kSlots];
  const int64_t plane = blockIdx.x;
  const int64_t other = p.style_samples == 1 ? plane % p.channels : plane;
  const Moments target = has_style(p)
                             ? moments_of(of_style + other * chunks_of(p.style.numel), p.style.numel, slot)
                             : given(p, plane / p.channels, plane % p.channels);
  const Moments content = moments_of(of_x + plane * chunks_of(p.x.numel), p.x.numel, slot);
  if (threadIdx.x == 0) result[plane] = affine<T>(p, content, target);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_tiles(const Params p, const Quads quads, const Affine* affines) {
  const int64_t tiles = (p.x.numel + kTile - 1) / kTile;
  const int64_t plane = blockIdx.x / tiles, begin = blockIdx.x % tiles * kTile;
  write_elements<T>(p, quads, plane, affines[plane], begin, min(p.x.numel, begin + kTile));
}

// ---- launches -------------------------------------------------------------------------------------

bool fits_quads(const Planes& t, const Params& p, int64_t samples) {
  return has_quads(t.data, t.dtype, t.dims, t.stride, samples, t.sample_stride) &&
         (p.channels == 1 || t.channel_stride % kQuad == 0);
}

template <class T>
void launch_chunks(const Planes& t, bool quads, int64_t planes, int64_t channels, Piece* pieces,
                   cudaStream_t stream) {
  const int64_t warps = planes * chunks_of(t.numel);
  if (warps == 0) return;
  launch(&measure_chunks<T>, dim3(blocks_for(warps, kWarps)), dim3(kThreads), 0, stream, t, quads, planes,
         channels, pieces);
}

template <class T, class S>
void launch_planes(const Params& p, void* scratch, cudaStream_t stream) {
  const Quads quads{fits_quads(p.x, p, p.samples), fits_quads(p.y, p, p.samples),
                    fits_quads(p.style, p, p.style_samples)};
  const int64_t planes = p.samples * p.channels;
  const dim3 per_plane(blocks_for(planes, 1)), block(kThreads);
  if (takes_one_block(p)) return launch(&one_block<T, S>, per_plane, block, 0, stream, p, quads);
  auto* const of_style = static_cast<Piece*>(scratch);
  Piece* const of_x = of_style + style_pieces(p);
  auto* const affines = reinterpret_cast<Affine*>(of_style + all_pieces(p));
  launch_chunks<S>(p.style, quads.style, p.style_samples * p.channels, p.channels, of_style, stream);
  launch_chunks<T>(p.x, quads.x, planes, p.channels, of_x, stream);
  launch(&add_chunks<T>, per_plane, block, 0, stream, p, static_cast<const Piece*>(of_style),
         static_cast<const Piece*>(of_x), affines);
  const int64_t tiles = (p.x.numel + kTile - 1) / kTile;
  launch(&write_tiles<T>, dim3(blocks_for(planes * tiles, 1)), block, 0, stream, p, quads,
         static_cast<const Affine*>(affines));
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (params.x.wide) {
    launch_planes<double, double>(params, scratch, on);
  } else if (params.style.wide) {
    launch_planes<float, double>(params, scratch, on);
  } else {
    launch_planes<float, float>(params, scratch, on);
  }
}

}  // namespace fastdiff::channel_affine
