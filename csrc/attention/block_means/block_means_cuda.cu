// SPDX-License-Identifier: Apache-2.0
// block_means on CUDA: a thread adds one column of one block, so that sums have the CPU's bits. Its loads do
// not depend on each other: many are under way at once.
#include "attention/block_means/block_means_math.h"
#include "core/launch.cuh"

namespace fastdiff::block_means {
namespace {

constexpr int kThreads = 128;

// NOTE: the dtype is a constant, so that no load waits for a switch.
template <class T, DType kDtype>
__global__ void __launch_bounds__(kThreads) mean_blocks(const Params p) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.numel()) return;
  const int64_t d = n % p.dim, r = n / p.dim % p.blocks, list = n / p.dim / p.blocks;
  const int64_t b = list / p.heads, h = list % p.heads, tokens = tokens_of(p, r);
  const int64_t at = p.x.at(b, h, r * p.block) + d * p.x.element;
  T sum = T(0);
#pragma unroll 8
  for (int64_t i = 0; i < tokens; ++i) sum = add(sum, load_as<T>(p.x.data, kDtype, at + i * p.x.row));
  static_cast<T*>(p.y.data)[p.y.at(b, h, r) + d * p.y.element] = mean_of(sum, tokens);
}

template <class T, DType kDtype>
void launch_as(const Params& p, cudaStream_t stream) {
  launch(&mean_blocks<T, kDtype>, dim3(blocks_for(p.numel(), kThreads)), dim3(kThreads), 0, stream, p);
}

}  // namespace

void launch_cuda(const Params& params, int device, void* on_stream) {
  const OnDevice on(device);
  const auto stream = static_cast<cudaStream_t>(on_stream);
  switch (params.x.dtype) {
    case DType::f64:
      return launch_as<double, DType::f64>(params, stream);
    case DType::f16:
      return launch_as<float, DType::f16>(params, stream);
    case DType::bf16:
      return launch_as<float, DType::bf16>(params, stream);
    default:
      return launch_as<float, DType::f32>(params, stream);
  }
}

}  // namespace fastdiff::block_means
