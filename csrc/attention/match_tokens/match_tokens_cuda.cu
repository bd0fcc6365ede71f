// SPDX-License-Identifier: Apache-2.0
// match_tokens on CUDA: one launch normalises all tokens, a second one gives each block of threads 64 rows,
// which meet all columns, 64 at a time, in shared memory.
#include <cmath>

#include "attention/match_tokens/match_tokens_math.h"
#include "attention/tiles.cuh"

namespace fastdiff::match_tokens {
namespace {

using attention::Pack;
using attention::Sequences;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kStage = 32;  // channels of the tiles in shared memory

// Tiles of kStage channels; a thread has 4 x 4 scores.
template <class T>
using Tile = attention::Tiling<T, kStage * 2, 4, 4>;
constexpr int kThreads = Tile<float>::kThreads, kTile = Tile<float>::kHeight;

template <class T>
constexpr int kPitch = kStage + Pack<T>::kSize;

// Half a warp for each token: to[token][padded].
template <class T>
__global__ void __launch_bounds__(kThreads)
    normalise(const Params p, const Sequences t, int64_t tokens, T* to) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / kSumLanes) + threadIdx.x / kSumLanes;
  const bool is_there = n < p.samples * tokens;
  const int64_t at = is_there ? t.at(n / tokens, n % tokens) : 0, count = is_there ? p.channels : 0;
  T squares = T(0);
  for (int64_t c = lane; c < count; c += kSumLanes) {
    const T x = load_as<T>(t.data, t.dtype, at + c * t.channel);
    squares = fma_(x, x, squares);
  }
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    squares = squares + __shfl_xor_sync(kAllLanes, squares, half);
  const T factor = T(1) / sqrt_(squares);
  if (!is_there) return;
  for (int64_t c = lane; c < p.padded(); c += kSumLanes)
    to[n * p.padded() + c] = (c < count ? load_as<T>(t.data, t.dtype, at + c * t.channel) : T(0)) * factor;
}

// Up to kTile rows of [count][padded] from channel c on, zeros in the rest.
template <class T>
__device__ void load_stage(const T* rows, int64_t count, int64_t padded, int64_t c, T* tile) {
  constexpr int kPacks = kStage / Pack<T>::kSize;
  for (int n = static_cast<int>(threadIdx.x); n < kTile * kPacks; n += kThreads) {
    const int row = n / kPacks, d = n % kPacks * Pack<T>::kSize;
    Pack<T> pack = {};
    if (row < count && c + d < padded) pack = *reinterpret_cast<const Pack<T>*>(rows + row * padded + c + d);
    *reinterpret_cast<Pack<T>*>(tile + row * kPitch<T> + d) = pack;
  }
}

// sum[i][j] += row i . column j over the channels of a stage.
template <class T>
__device__ __forceinline__ void add_stage(const T* rows, const T* columns, int channels,
                                          typename Tile<T>::Scores& sum) {
  using G = Tile<T>;
#pragma unroll 2
  for (int d = 0; d < channels; d += G::kPack) {
    Pack<T> a[G::kRows], b[G::kColumns];
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
      a[i] = *reinterpret_cast<const Pack<T>*>(rows + G::row(i) * kPitch<T> + d);
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j)
      b[j] = *reinterpret_cast<const Pack<T>*>(columns + G::column(j) * kPitch<T> + d);
#pragma unroll
    for (int e = 0; e < G::kPack; ++e)
#pragma unroll
      for (int i = 0; i < G::kRows; ++i)
#pragma unroll
        for (int j = 0; j < G::kColumns; ++j) sum[i][j] = fma_(b[j].v[e], a[i].v[e], sum[i][j]);
  }
}

template <class T>
struct Best {
  T score;
  int column;

  __device__ __forceinline__ void meet(T s, int j) {
    const bool is_same = s == score || (s != s && score != score);
    column = is_same ? min(column, j) : static_cast<int>(if_new_highest<T>(s, score, 1, 0)) ? j : column;
    score = if_new_highest(s, score, s, score);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) match(const Params p, const T* a, const T* b) {
  using G = Tile<T>;
  __shared__ __align__(16) T rows[kTile * kPitch<T>], columns[kTile * kPitch<T>];
  const int64_t tiles = (p.rows + kTile - 1) / kTile, padded = p.padded();
  const int64_t sample = blockIdx.x / tiles, first = blockIdx.x % tiles * kTile;
  const T* const own = a + (sample * p.rows + first) * padded;
  Best<T> best[G::kRows];
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) best[i] = {-static_cast<T>(INFINITY), 0};
  for (int64_t column = 0; column < p.columns; column += kTile) {
    const T* const others = b + (sample * p.columns + column) * padded;
    typename G::Scores score = {}, sum = {};
    for (int64_t c = 0; c < padded; c += kStage) {
      __syncthreads();
      load_stage(own, p.rows - first, padded, c, rows);
      load_stage(others, p.columns - column, padded, c, columns);
      __syncthreads();
      add_stage(rows, columns, kStage, sum);
      if ((c + kStage) % kChunk != 0 && c + kStage < padded) continue;
#pragma unroll
      for (int i = 0; i < G::kRows; ++i)
#pragma unroll
        for (int j = 0; j < G::kColumns; ++j) {
          score[i][j] = c < kChunk ? sum[i][j] : score[i][j] + sum[i][j];
          sum[i][j] = T(0);
        }
    }
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j)
        if (column + G::column(j) < p.columns)
          best[i].meet(score[i][j], static_cast<int>(column) + G::column(j));
  }
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    for (int half = G::kAcross / 2; half > 0; half /= 2)
      best[i].meet(__shfl_xor_sync(kAllLanes, best[i].score, half),
                   __shfl_xor_sync(kAllLanes, best[i].column, half));
    const int64_t row = first + G::row(i);
    if (G::x() != 0 || row >= p.rows) continue;
    store_as(p.score.data, p.score.dtype, p.score.at(sample, row), best[i].score);
    p.index[sample * p.index_sample + row * p.index_row] = best[i].column;
  }
}

template <class T>
void launch_as(const Params& p, T* memory, cudaStream_t stream) {
  T *const a = memory, *const b = memory + p.samples * p.rows * p.padded();
  const auto norm = [&](const Sequences& t, int64_t tokens, T* to) {
    launch(&normalise<T>, dim3(blocks_for(p.samples * tokens, kThreads / kSumLanes)), dim3(kThreads), 0,
           stream, p, t, tokens, to);
  };
  norm(p.a, p.rows, a);
  norm(p.b, p.columns, b);
  const int64_t tiles = (p.rows + kTile - 1) / kTile;
  launch(&match<T>, dim3(blocks_for(p.samples * tiles, 1)), dim3(kThreads), 0, stream, p,
         static_cast<const T*>(a), static_cast<const T*>(b));
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on(device);
  const auto past = reinterpret_cast<uintptr_t>(scratch) % kAlignment;
  void* const memory = static_cast<char*>(scratch) + (past == 0 ? 0 : kAlignment - past);
  if (params.wide) {
    launch_as(params, static_cast<double*>(memory), static_cast<cudaStream_t>(stream));
  } else {
    launch_as(params, static_cast<float*>(memory), static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::match_tokens
