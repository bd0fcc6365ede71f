// SPDX-License-Identifier: Apache-2.0
// gather_tokens on CUDA: a thread moves four consecutive channels of a token, or one where they do not lie
// so.
#include "attention/gather_tokens/gather_tokens_math.h"
#include "core/walk.cuh"

namespace fastdiff::gather_tokens {
namespace {

using attention::Sequences;

constexpr int kThreads = 256;

template <class Index>
__device__ int64_t token_of(const Params& p, Index b, Index m) {
  const int64_t token = p.index.of(b, m);
  if (-1 <= token && token < p.tokens) return token;
  device_refusal("fastdiff::gather_tokens: index must be numbers of tokens, or -1");
  return -1;
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) move_elements(const Params p) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads, channels = p.channels, places = p.places;
  for (Index e = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; e < p.numel(); e += step) {
    const Index c = e % channels, row = e / channels, b = row / places, m = row % places;
    const Source source = source_of(p, b, m, token_of(p, b, m));
    const auto element = [c](const Sequences& t, int64_t at) {
      return t.data == nullptr ? T(0) : load_as<T>(t.data, t.dtype, at + c * t.channel);
    };
    T y = element(source.from, source.at);
    if (p.residual.data != nullptr) y = y + element(p.residual, p.residual.at(b, m));
    store_as(p.y.data, p.y.dtype, p.y.at(b, m) + c * p.y.channel, y);
  }
}

template <class Index>
__global__ void __launch_bounds__(kThreads) move_quads(const Params p) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads, quads = p.channels / kQuad, places = p.places;
  const Index total = p.numel() / kQuad;
  for (Index e = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; e < total; e += step) {
    const Index c = e % quads * kQuad, row = e / quads, b = row / places, m = row % places;
    const Source source = source_of(p, b, m, token_of(p, b, m));
    float y[kQuad] = {}, residual[kQuad];
    if (source.from.data != nullptr) load_quad(source.from.data, source.from.dtype, source.at + c, y);
    if (p.residual.data != nullptr) {
      load_quad(p.residual.data, p.residual.dtype, p.residual.at(b, m) + c, residual);
      for (int j = 0; j < kQuad; ++j) y[j] = y[j] + residual[j];
    }
    store_quad(p.y.data, p.y.dtype, p.y.at(b, m) + c, y);
  }
}

bool is_quads(const Sequences& t) {
  return t.data == nullptr ||
         (has_quads(t.data, t.dtype, 1, &t.channel, 2, t.sample) && t.token % kQuad == 0);
}

template <class Index>
void launch_as(const Params& p, cudaStream_t stream) {
  constexpr int64_t kWaves = 16;  // blocks for each multiprocessor
  const bool quads =
      p.channels % kQuad == 0 && is_quads(p.x) && is_quads(p.fill) && is_quads(p.residual) && is_quads(p.y);
  const int64_t per_block = kThreads * (quads ? kQuad : 1);
  const int64_t wanted = (p.numel() + per_block - 1) / per_block;
  const int64_t most = kWaves * multiprocessors("gather_tokens");
  const dim3 grid(static_cast<unsigned>(wanted < most ? wanted : most));
  if (quads) {
    launch(move_quads<Index>, grid, dim3(kThreads), 0, stream, p);
  } else if (p.wide) {
    launch(move_elements<double, Index>, grid, dim3(kThreads), 0, stream, p);
  } else {
    launch(move_elements<float, Index>, grid, dim3(kThreads), 0, stream, p);
  }
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  // A loop's last step may go past the end once.
  if (params.numel() < kMaxInt32 / 2) {
    launch_as<uint32_t>(params, static_cast<cudaStream_t>(stream));
  } else {
    launch_as<uint64_t>(params, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::gather_tokens
