// SPDX-License-Identifier: Apache-2.0
// normed_token_mean on CUDA: a block of threads adds up a chunk of tokens, and a second launch the chunks.
// Each sum is formed in one order, whatever the number of blocks.
#include "attention/normed_token_mean/normed_token_mean_math.h"
#include "core/launch.cuh"

namespace fastdiff::normed_token_mean {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ T warp_sum(T x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = x + __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Mean and reciprocal deviation of a token, by one warp.
template <class T>
__device__ void measure(const Params& p, int64_t at, T& mean, T& rstd) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  T sum = T(0), squares = T(0);
  for (int d = lane; d < p.dim; d += kWarp) sum = sum + load_as<T>(p.x, p.dtype, at + d * p.column);
  mean = warp_sum(sum) / static_cast<T>(p.dim);
  for (int d = lane; d < p.dim; d += kWarp) {
    const T e = load_as<T>(p.x, p.dtype, at + d * p.column) - mean;
    squares = fma_(e, e, squares);
  }
  rstd = T(1) / sqrt_(warp_sum(squares) / static_cast<T>(p.dim) + static_cast<T>(p.eps));
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_chunk(const Params p, T* sums) {
  __shared__ T mean[kChunk], rstd[kChunk];
  const int64_t chunks = chunks_of(p), b = blockIdx.x / chunks, first = blockIdx.x % chunks * kChunk;
  const int count =
      static_cast<int>(min(static_cast<long long>(kChunk), static_cast<long long>(p.tokens - first)));
  const int64_t at = b * p.sample + first * p.token;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int n = warp; n < count; n += kWarps) {
    T m, r;
    measure(p, at + n * p.token, m, r);
    if (threadIdx.x % kWarp == 0) mean[n] = m, rstd[n] = r;
  }
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < p.dim; d += kThreads) {
    T sum = T(0);
    for (int n = 0; n < count; ++n)
      sum = fma_(load_as<T>(p.x, p.dtype, at + n * p.token + d * p.column) - mean[n], rstd[n], sum);
    sums[static_cast<int64_t>(blockIdx.x) * p.dim + d] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_chunks(const Params p, const T* sums) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.numel()) return;
  const int64_t b = n / p.dim, d = n % p.dim, chunks = chunks_of(p);
  T sum = T(0);
  for (int64_t c = 0; c < chunks; ++c) sum = sum + sums[(b * chunks + c) * p.dim + d];
  store_as(p.y.data, p.y.dtype, b * p.y.sample + d * p.y.column,
           modulated(p, b, d, sum / static_cast<T>(p.tokens)));
}

template <class T>
void launch_as(const Params& p, T* sums, cudaStream_t stream) {
  if (p.tokens > 0)
    launch(&add_chunk<T>, dim3(blocks_for(p.samples * chunks_of(p), 1)), dim3(kThreads), 0, stream, p, sums);
  launch(&add_chunks<T>, dim3(blocks_for(p.numel(), kThreads)), dim3(kThreads), 0, stream, p,
         static_cast<const T*>(sums));
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on(device);
  if (params.wide()) {
    launch_as(params, static_cast<double*>(scratch), static_cast<cudaStream_t>(stream));
  } else {
    launch_as(params, static_cast<float*>(scratch), static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::normed_token_mean
