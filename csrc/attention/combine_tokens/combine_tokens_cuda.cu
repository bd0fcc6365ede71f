// SPDX-License-Identifier: Apache-2.0
// combine_tokens on CUDA: a thread adds up four consecutive channels of a list, or one where they do not lie
// so.
#include "attention/combine_tokens/combine_tokens_math.h"
#include "core/walk.cuh"

namespace fastdiff::combine_tokens {
namespace {

using attention::Sequences;

constexpr int kThreads = 256;

struct List {
  int64_t first, last;
};

// After a refusal nothing.
__device__ List list_of(const Params& p, int64_t b, int64_t m) {
  const List list{p.offsets.of(b, m), p.offsets.of(b, m + 1)};
  if (0 <= list.first && list.first <= list.last && list.last <= p.entries) return list;
  device_refusal("fastdiff::combine_tokens: offsets must ascend within the entries");
  return {0, 0};
}

// The element where an entry's token begins.
__device__ int64_t member_of(const Params& p, int64_t b, int64_t e) {
  const int64_t token = p.members.of(b, e);
  if (0 <= token && token < p.tokens) return p.x.at(b, token);
  device_refusal("fastdiff::combine_tokens: members must be numbers of tokens");
  return p.x.at(b, 0);
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) add_elements(const Params p) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads, channels = p.channels, lists = p.lists;
  for (Index n = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; n < p.numel(); n += step) {
    const Index c = n % channels, row = n / channels, b = row / lists, m = row % lists;
    const List list = list_of(p, b, m);
    T sum = T(0);
    for (int64_t e = list.first; e < list.last; ++e)
      sum = with_term(sum, weight_of<T>(p, b, e),
                      load_as<T>(p.x.data, p.x.dtype, member_of(p, b, e) + c * p.x.channel));
    store_as(p.y.data, p.y.dtype, p.y.at(b, m) + c * p.y.channel, sum);
  }
}

template <class Index>
__global__ void __launch_bounds__(kThreads) add_quads(const Params p) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads, quads = p.channels / kQuad, lists = p.lists;
  const Index total = p.numel() / kQuad;
  for (Index n = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; n < total; n += step) {
    const Index c = n % quads * kQuad, row = n / quads, b = row / lists, m = row % lists;
    const List list = list_of(p, b, m);
    float sum[kQuad] = {}, x[kQuad];
    for (int64_t e = list.first; e < list.last; ++e) {
      const float w = weight_of<float>(p, b, e);
      load_quad(p.x.data, p.x.dtype, member_of(p, b, e) + c, x);
      for (int j = 0; j < kQuad; ++j) sum[j] = with_term(sum[j], w, x[j]);
    }
    store_quad(p.y.data, p.y.dtype, p.y.at(b, m) + c, sum);
  }
}

bool is_quads(const Sequences& t) {
  return has_quads(t.data, t.dtype, 1, &t.channel, 2, t.sample) && t.token % kQuad == 0;
}

template <class Index>
void launch_as(const Params& p, cudaStream_t stream) {
  constexpr int64_t kWaves = 16;  // blocks for each multiprocessor
  const bool quads = p.channels % kQuad == 0 && is_quads(p.x) && is_quads(p.y);
  const int64_t per_block = kThreads * (quads ? kQuad : 1);
  const int64_t wanted = (p.numel() + per_block - 1) / per_block;
  const int64_t most = kWaves * multiprocessors("combine_tokens");
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
  if (params.numel() < kMaxInt32 / 2) {
    launch_as<uint32_t>(params, static_cast<cudaStream_t>(stream));
  } else {
    launch_as<uint64_t>(params, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::combine_tokens
