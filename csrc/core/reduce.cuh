// SPDX-License-Identifier: Apache-2.0
// core/reduce.h on CUDA: a warp sums a chunk, a block adds a sample's chunks. Small samples take one launch;
// large ones two, with the chunks' sums between them in device memory. No atomics: the order is the one of
// reduce.h.
#pragma once

#include "core/reduce.h"
#include "core/walk.cuh"

namespace fastdiff::reduce {
namespace {

inline constexpr int kThreads = kSlots;  // of every block: in the last step one per slot
inline constexpr int kWarp = 32;
inline constexpr int kWarps = kThreads / kWarp;
static_assert(kLanes == kWarp * kQuad, "a warp's turn is one element for each lane");

// Element `first` + j of all tensors to x[j], of which `count` exist.
template <class T, int N>
__device__ __forceinline__ void load_elements(const Source<N>& source, bool quads, int64_t sample,
                                              int64_t first, int count, T (&x)[kQuad][N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const Operand& from = source.x[n];
    const int64_t base = sample * from.sample_stride;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (quads && count == kQuad) {
        T at[kQuad];
        load_quad(from.data, from.dtype, base + first, at);
        for (int j = 0; j < kQuad; ++j) x[j][n] = at[j];
        continue;
      }
    }
    for (int j = 0; j < count; ++j)
      x[j][n] = load_as<T>(from.data, from.dtype,
                           base + offset_of(first + j, source.dims, source.size, from.stride));
  }
}

// The sums of a chunk, in lane 0 of the warp that calls it.
template <class T, int N, int K, class Terms>
__device__ void sum_chunk(const Source<N>& source, bool quads, const Terms& terms, int64_t sample,
                          int64_t chunk, double (&total)[K]) {
  const int lane = threadIdx.x % kWarp;
  T sum[kQuad][K] = {};
  for (int turn = 0; turn < kChunk / kLanes; ++turn) {
    const int64_t first = chunk * kChunk + turn * kLanes + lane * kQuad;
    const int count = static_cast<int>(max(int64_t{0}, min(source.numel - first, int64_t{kQuad})));
    T x[kQuad][N];
    load_elements(source, quads, sample, first, count, x);
    for (int j = 0; j < count; ++j) terms(x[j], sum[j]);
  }
  for (int k = 0; k < K; ++k) {
    for (int step = kWarp / 2; step > 0; step /= 2)
      for (int j = 0; j < kQuad; ++j)
        sum[j][k] = sum[j][k] + __shfl_down_sync(0xffffffffu, sum[j][k], static_cast<unsigned>(step));
    total[k] = static_cast<double>((sum[0][k] + sum[2][k]) + (sum[1][k] + sum[3][k]));
  }
}

// A sample's sums of its chunks' sums, [chunks, K], in thread 0. All threads of the block call it.
template <int K>
__device__ void add_chunks(const double* partial, int64_t chunks, double (&slot)[K][kSlots],
                           double (&total)[K]) {
  const int own = threadIdx.x;
  for (int k = 0; k < K; ++k) {
    double sum = 0;
    for (int64_t c = own; c < chunks; c += kSlots) sum += partial[c * K + k];
    slot[k][own] = sum;
  }
  for (int half = used_slots(chunks) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own < half)
      for (int k = 0; k < K; ++k) slot[k][own] = slot[k][own] + slot[k][own + half];
  }
  for (int k = 0; k < K; ++k) total[k] = slot[k][own];  // of thread 0, which wrote it
}

template <class T, int N, int K, class Terms, class Result>
__global__ void __launch_bounds__(kThreads)
    reduce_sample(const Source<N> source, bool quads, const Terms terms, const Result result) {
  __shared__ double partial[kOneBlockChunks * K];
  __shared__ double slot[K][kSlots];
  const int64_t sample = blockIdx.x, chunks = chunks_of(source);
  for (int64_t chunk = threadIdx.x / kWarp; chunk < chunks; chunk += kWarps) {
    double sum[K];
    sum_chunk<T>(source, quads, terms, sample, chunk, sum);
    if (threadIdx.x % kWarp == 0)
      for (int k = 0; k < K; ++k) partial[chunk * K + k] = sum[k];
  }
  __syncthreads();
  double total[K];
  add_chunks(partial, chunks, slot, total);
  if (threadIdx.x == 0) result(sample, total);
}

template <class T, int N, int K, class Terms>
__global__ void __launch_bounds__(kThreads)
    reduce_chunks(const Source<N> source, bool quads, const Terms terms, double* partial) {
  const int64_t chunks = chunks_of(source);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (own >= source.samples * chunks) return;  // the whole warp
  double sum[K];
  sum_chunk<T>(source, quads, terms, own / chunks, own % chunks, sum);
  if (threadIdx.x % kWarp == 0)
    for (int k = 0; k < K; ++k) partial[own * K + k] = sum[k];
}

template <int K, class Result>
__global__ void __launch_bounds__(kThreads)
    reduce_partials(const double* partial, int64_t chunks, const Result result) {
  __shared__ double slot[K][kSlots];
  const int64_t sample = blockIdx.x;
  double total[K];
  add_chunks(partial + sample * chunks * K, chunks, slot, total);
  if (threadIdx.x == 0) result(sample, total);
}

// result(sample, sums) for each sample, on the device. `scratch`: scratch_bytes, aligned to 8.
template <class T, int K, int N, class Terms, class Result>
void each_sample(const Source<N>& source, const Terms& terms, const Result& result, void* scratch,
                 cudaStream_t stream) {
  bool quads = sizeof(T) == sizeof(float);
  for (const Operand& x : source.x)
    quads = quads && has_quads(x.data, x.dtype, source.dims, x.stride, source.samples, x.sample_stride);
  const int64_t chunks = chunks_of(source);
  const dim3 per_sample(blocks_for(source.samples, 1)), block(kThreads);
  if (chunks <= kOneBlockChunks)
    return launch(&reduce_sample<T, N, K, Terms, Result>, per_sample, block, 0, stream, source, quads, terms,
                  result);
  auto* const partial = static_cast<double*>(scratch);
  launch(&reduce_chunks<T, N, K, Terms>, dim3(blocks_for(source.samples * chunks, kWarps)), block, 0, stream,
         source, quads, terms, partial);
  launch(&reduce_partials<K, Result>, per_sample, block, 0, stream, static_cast<const double*>(partial),
         chunks, result);
}

}  // namespace
}  // namespace fastdiff::reduce
