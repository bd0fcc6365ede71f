// SPDX-License-Identifier: Apache-2.0
// affine.h on CUDA: a thread takes four consecutive elements, or one where they do not lie so.
#pragma once

#include "core/walk.cuh"
#include "quant/affine_math.h"

namespace fastdiff::quant {
namespace {

inline constexpr int kElementThreads = 256;

// Elements at, at + 1, ... of a dtype that may be int8; N is 1 or kQuad.
template <class T, int N>
__device__ __forceinline__ void load_elements(const Operand& t, int64_t at, T (&v)[N]) {
  if constexpr (N == kQuad) {
    if (t.dtype != DType::i8) return load_quad(t.data, t.dtype, at, v);
    const uint32_t word = *reinterpret_cast<const uint32_t*>(static_cast<const int8_t*>(t.data) + at);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = static_cast<T>(static_cast<int8_t>(word >> (8 * j) & 0xffu));
  } else {
    v[0] = load_as<T>(t.data, t.dtype, at);
  }
}

template <class T, int N>
__device__ __forceinline__ void store_elements(const Operand& t, int64_t at, const T (&v)[N]) {
  if constexpr (N == kQuad) {
    if (t.dtype != DType::i8) return store_quad(t.data, t.dtype, at, v);
    *reinterpret_cast<uint32_t*>(static_cast<int8_t*>(t.data) + at) = packed_int8(v);
  } else if (t.dtype == DType::i8) {
    static_cast<int8_t*>(t.data)[at] = to_int8(v[0]);
  } else {
    store_as<T>(t.data, t.dtype, at, v[0]);
  }
}

// A row of the table; the host cannot look at it.
__device__ __forceinline__ int64_t checked_step(const Affine& a, int64_t step, const char* message) {
  if (0 <= step && step < a.steps) return step;
  device_refusal(message);
  return 0;
}

template <class Formula, class T, int N, class Index>
__global__ void __launch_bounds__(kElementThreads) change_elements(const Elements p) {
  const Affine& a = p.affine;
  const Index total = p.total(), stride = static_cast<Index>(gridDim.x) * kElementThreads * N;
  for (Index n = (static_cast<Index>(blockIdx.x) * kElementThreads + threadIdx.x) * N; n < total;
       n += stride) {
    const int64_t sample = p.samples == 1 ? 0 : n / static_cast<Index>(p.numel);
    const Index e = p.samples == 1 ? n : n % static_cast<Index>(p.numel);
    const int64_t step = checked_step(a, a.step_of(sample), Formula::kRefusal);
    const auto place = [&](const Operand& t) {
      return offset_of<Index>(e, p.dims, p.size, t.stride) + sample * t.sample_stride;
    };
    const int64_t scale_at = place(a.scale) + step * a.scale_row, zero_at = place(a.zero) + step * a.zero_row;
    T x[N], y[N], gradient[N] = {};
    load_elements(p.x, place(p.x), x);
    if constexpr (Formula::kHasGradient) load_elements(p.gradient, place(p.gradient), gradient);
    Point<T> point{T(0), T(0), T(1), T(1), T(0), static_cast<T>(a.low), static_cast<T>(a.high)};
#pragma unroll
    for (int j = 0; j < N; ++j) {
      point.x = x[j];
      point.gradient = gradient[j];
      if (j == 0 || a.scale.stride[0] != 0) {
        point.scale = load_as<T>(a.scale.data, a.scale.dtype, scale_at + j * a.scale.stride[0]);
        point.inverse = div(T(1), point.scale);
      }
      point.zero = static_cast<T>(a.zero_at(zero_at + j * a.zero.stride[0]));
      y[j] = Formula{}(point);
    }
    store_elements(p.y, place(p.y), y);
  }
}

inline bool has_element_quads(const Elements& p, const Operand& t) {
  if (t.data == nullptr) return true;
  bool fits = t.dtype != DType::f64 && t.stride[0] == 1 && t.sample_stride % kQuad == 0 &&
              reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(kQuad * size_of(t.dtype)) == 0;
  for (int d = 1; d < p.dims; ++d) fits = fits && t.stride[d] % kQuad == 0;
  return fits;
}

template <class Formula, class Index>
void launch_elements_as(const Elements& p, cudaStream_t stream) {
  constexpr int64_t kWaves = 16;  // blocks for each multiprocessor
  const bool quads = !p.wide && p.size[0] % kQuad == 0 && has_element_quads(p, p.x) &&
                     has_element_quads(p, p.gradient) && has_element_quads(p, p.y);
  const int64_t per_block = kElementThreads * (quads ? kQuad : 1);
  const int64_t wanted = (p.total() + per_block - 1) / per_block;
  const int64_t most = kWaves * multiprocessors("quant");
  const dim3 grid(static_cast<unsigned>(wanted < most ? wanted : most)), block(kElementThreads);
  if (quads) {
    launch(change_elements<Formula, float, kQuad, Index>, grid, block, 0, stream, p);
  } else if (p.wide) {
    launch(change_elements<Formula, double, 1, Index>, grid, block, 0, stream, p);
  } else {
    launch(change_elements<Formula, float, 1, Index>, grid, block, 0, stream, p);
  }
}

template <class Formula>
void launch_elements(const Elements& p, cudaStream_t stream) {
  // A loop's last step may go past the end once.
  if (p.total() < kMaxInt32 / 2) {
    launch_elements_as<Formula, uint32_t>(p, stream);
  } else {
    launch_elements_as<Formula, uint64_t>(p, stream);
  }
}

}  // namespace
}  // namespace fastdiff::quant
