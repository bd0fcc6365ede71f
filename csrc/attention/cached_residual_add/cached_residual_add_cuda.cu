// SPDX-License-Identifier: Apache-2.0
// cached_residual_add on CUDA: a thread adds up four consecutive elements at a time, in the order of the
// result.
#include "attention/cached_residual_add/cached_residual_add_math.h"
#include "core/walk.cuh"

namespace fastdiff::cached_residual_add {
namespace {

constexpr int kThreads = 256;

template <class T, class Index>
__device__ T element_of(const Params& p, const Operand& x, Index e) {
  return load_as<T>(x.data, x.dtype, offset_of<Index>(e, p.dims, p.size, x.stride));
}

// Any strides and dtypes: an element a thread.
template <class T, class Index>
__global__ void __launch_bounds__(kThreads) add_elements(const Params p) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index e = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; e < p.numel; e += step) {
    T sum = element_of<T>(p, p.h, e);
    for (int n = 0; n < p.components; ++n) {
      const T c = element_of<T>(p, p.c[n], e);
      sum = p.g[n].data == nullptr ? without_gate(sum, c) : with_gate(sum, element_of<T>(p, p.g[n], e), c);
    }
    store_as<T>(p.y.data, p.y.dtype, offset_of<Index>(e, p.dims, p.size, p.y.stride), sum);
  }
}

// All innermost dimensions are whole quads: four elements are side by side, or a gate's one for all of them.
template <class Index>
__device__ void quad_of(const Params& p, const Operand& x, Index e, float (&v)[kQuad]) {
  const int64_t at = offset_of<Index>(e, p.dims, p.size, x.stride);
  if (x.stride[0] == 1) return load_quad(x.data, x.dtype, at, v);
  const float one = load_as<float>(x.data, x.dtype, at);
  for (int j = 0; j < kQuad; ++j) v[j] = one;
}

template <class Index>
__global__ void __launch_bounds__(kThreads) add_quads(const Params p) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads * kQuad;
  for (Index e = (static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x) * kQuad; e < p.numel; e += step) {
    float sum[kQuad], c[kQuad], g[kQuad];
    quad_of(p, p.h, e, sum);
    for (int n = 0; n < p.components; ++n) {
      quad_of(p, p.c[n], e, c);
      if (p.g[n].data != nullptr) quad_of(p, p.g[n], e, g);
      for (int j = 0; j < kQuad; ++j)
        sum[j] = p.g[n].data == nullptr ? without_gate(sum[j], c[j]) : with_gate(sum[j], g[j], c[j]);
    }
    store_quad(p.y.data, p.y.dtype, offset_of<Index>(e, p.dims, p.size, p.y.stride), sum);
  }
}

bool is_quads(const Params& p, const Operand& x, bool is_gate) {
  if (x.data == nullptr) return true;
  if (is_gate && x.stride[0] == 0) return true;
  if (x.dtype == DType::f64 || x.stride[0] != 1 ||
      reinterpret_cast<uintptr_t>(x.data) % static_cast<uintptr_t>(kQuad * size_of(x.dtype)))
    return false;
  for (int d = 1; d < p.dims; ++d)
    if (x.stride[d] % kQuad != 0) return false;
  return true;
}

bool all_quads(const Params& p) {
  bool fits = !p.wide && p.size[0] % kQuad == 0 && is_quads(p, p.h, false) && is_quads(p, p.y, false);
  for (int n = 0; fits && n < p.components; ++n)
    fits = is_quads(p, p.c[n], false) && is_quads(p, p.g[n], true);
  return fits;
}

template <class Index>
void launch_as(const Params& p, cudaStream_t stream) {
  constexpr int64_t kWaves = 16;  // blocks for each multiprocessor
  const bool quads = all_quads(p);
  const int64_t per_block = kThreads * (quads ? kQuad : 1);
  const int64_t wanted = (p.numel + per_block - 1) / per_block;
  const int64_t most = kWaves * multiprocessors("cached_residual_add");
  const dim3 grid(static_cast<unsigned>(wanted < most ? wanted : most));
  if (quads) {
    launch(add_quads<Index>, grid, dim3(kThreads), 0, stream, p);
  } else if (p.wide) {
    launch(add_elements<double, Index>, grid, dim3(kThreads), 0, stream, p);
  } else {
    launch(add_elements<float, Index>, grid, dim3(kThreads), 0, stream, p);
  }
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  // A loop's last step may go past the end once.
  if (params.numel < kMaxInt32 / 2) {
    launch_as<uint32_t>(params, static_cast<cudaStream_t>(stream));
  } else {
    launch_as<uint64_t>(params, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::cached_residual_add
