// SPDX-License-Identifier: Apache-2.0
// sparse_fill on CUDA: blocks count their chunks, one block adds the counts up, and blocks fill their chunks.
#include "core/walk.cuh"
#include "quant/sparse_fill/sparse_fill_math.h"

namespace fastdiff::sparse_fill {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ T element(const Params& p, int64_t n) {
  return load_as<T>(p.w.data, p.w.dtype, offset_of(n, p.dims, p.size, p.w.stride));
}

template <class T>
__global__ void __launch_bounds__(kThreads) count_chunk(const Params p, int64_t* counts) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const T threshold = threshold_of<T>(p);
  int own = 0;
  for (int e = static_cast<int>(threadIdx.x); e < kChunk && first + e < p.numel; e += kThreads)
    own += is_replaced(element<T>(p, first + e), threshold) ? 1 : 0;
  atomicAdd(&total, own);
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// Counts [chunks] to ranks [chunks + 1], by one block.
__global__ void __launch_bounds__(kThreads) add_up(const Params p, int64_t* ranks) {
  __shared__ int64_t sums[kThreads];
  const int64_t chunks = chunks_of(p);
  const int own = static_cast<int>(threadIdx.x);
  int64_t before = 0;
  for (int64_t first = 0; first < chunks; first += kThreads) {
    const int64_t count = first + own < chunks ? ranks[first + own] : 0;
    sums[own] = count;
    __syncthreads();
    for (int step = 1; step < kThreads; step *= 2) {
      const int64_t other = own >= step ? sums[own - step] : 0;
      __syncthreads();
      sums[own] += other;
      __syncthreads();
    }
    if (first + own < chunks) ranks[first + own] = before + sums[own] - count;
    before += sums[kThreads - 1];
    __syncthreads();
  }
  if (own != 0) return;
  ranks[chunks] = before;
  if (before != p.count)
    device_refusal("fastdiff::sparse_fill: values must have as many elements as w has below the threshold");
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_chunk(const Params p, const int64_t* ranks) {
  __shared__ int of_warps[kWarps];
  if (ranks[gridDim.x] != p.count) return;  // was refused
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const T threshold = threshold_of<T>(p);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int64_t rank = ranks[blockIdx.x];
  for (int turn = 0; turn < kChunk && first + turn < p.numel; turn += kThreads) {
    const int64_t n = first + turn + static_cast<int>(threadIdx.x);
    const bool is_there = n < p.numel;
    const T w = is_there ? element<T>(p, n) : T(0);
    const bool is_next = is_there && is_replaced(w, threshold);
    const unsigned of_warp = __ballot_sync(kAllLanes, is_next);
    if (lane == 0) of_warps[warp] = __popc(of_warp);
    __syncthreads();
    int64_t own = rank + __popc(of_warp & ((1u << lane) - 1));
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) own += of_warps[other];
      rank += of_warps[other];
    }
    __syncthreads();
    if (!is_there) continue;
    const T y = is_next ? load_as<T>(p.values, p.values_dtype, own * p.values_stride) : w;
    store_as(p.y.data, p.y.dtype, offset_of(n, p.dims, p.size, p.y.stride), y);
  }
}

template <class T>
void launch_as(const Params& p, int64_t* ranks, cudaStream_t stream) {
  const dim3 chunks(blocks_for(chunks_of(p), 1)), block(kThreads);
  launch(&count_chunk<T>, chunks, block, 0, stream, p, ranks);
  launch(&add_up, dim3(1), block, 0, stream, p, ranks);
  launch(&fill_chunk<T>, chunks, block, 0, stream, p, static_cast<const int64_t*>(ranks));
}

}  // namespace

void launch_cuda(const Params& params, int64_t* ranks, int device, void* stream) {
  const OnDevice on(device);
  if (params.wide) {
    launch_as<double>(params, ranks, static_cast<cudaStream_t>(stream));
  } else {
    launch_as<float>(params, ranks, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::sparse_fill
