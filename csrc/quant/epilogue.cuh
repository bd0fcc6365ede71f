// SPDX-License-Identifier: Apache-2.0
// The epilogue on CUDA: its vectors as float32, the narrow products of the low-rank branch, and what becomes
// of four sums side by side.
#pragma once

#include "core/walk.cuh"
#include "quant/epilogue.h"

namespace fastdiff::quant {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int warp_of_block() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
__device__ __forceinline__ int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = x + __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ __forceinline__ float element_of(const Vectors& v, int64_t row, int64_t n) {
  return load_as<float>(v.data, v.dtype, row * v.row + n * v.element);
}

// ---- once for a call -------------------------------------------------------------------------------------

constexpr int kVectorThreads = 256;

// to [count][e.slots]: row n of v, spread over the slots; slots that are no column are 0.
__device__ inline void spread(const Epilogue& e, const Vectors& v, int64_t count, int64_t thread,
                              int64_t threads, float* to) {
  for (int64_t n = thread; n < count * e.slots; n += threads) {
    const int64_t slot = n % e.slots, half = e.columns / 2;
    const int64_t pair = slot / (2 * kPanel) * kPanel + slot % kPanel;
    const bool second = slot / kPanel % 2 == 1;
    const int64_t column = !e.gated ? slot : second ? half + pair : pair;
    const bool there = e.gated ? pair < half : column < e.columns;
    to[n] = there ? element_of(v, n / e.slots, column) : 0.0f;
  }
}

__global__ void __launch_bounds__(kVectorThreads) widen_vectors(const Epilogue e) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kVectorThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kVectorThreads + threadIdx.x;
  if (e.bias != nullptr) spread(e, e.bias_in, 1, thread, threads, e.bias);
  if (e.gate != nullptr)
    for (int64_t n = thread; n < e.samples_of_gate() * e.outputs; n += threads)
      e.gate[n] = element_of(e.gate_in, n / e.outputs, n % e.outputs);
  if (e.rank == 0) return;
  spread(e, {e.up_in.data, e.up_in.dtype, e.up_in.element, e.up_in.row}, e.rank, thread, threads, e.up);
  for (int64_t n = thread; n < e.inner * e.rank_padded; n += threads) {
    const int64_t r = n % e.rank_padded;
    e.down[n] = r < e.rank ? element_of(e.down_in, r, n / e.rank_padded) : 0.0f;
  }
}

inline void launch_vectors(const Epilogue& e, cudaStream_t stream) {
  if (e.bias == nullptr && e.gate == nullptr && e.rank == 0) return;
  constexpr int64_t kMostBlocks = 1024;
  const int64_t most =
      (e.slots * (e.rank + 1) + e.inner * e.rank_padded + kVectorThreads - 1) / kVectorThreads;
  launch(widen_vectors, dim3(static_cast<unsigned>(most < kMostBlocks ? most : kMostBlocks)),
         dim3(kVectorThreads), 0, stream, e);
}

// p of row m, by a block of so many warps; x(k): its elements as float32.
template <class X>
__device__ void shrink_row(const Epilogue& e, int64_t m, int warps, const X& x) {
  for (int64_t r = warp_of_block(); r < e.rank; r += warps) {
    float sum = 0.0f;
    for (int64_t k = lane_of_warp(); k < e.inner; k += kWarp)
      sum = fma_(x(k), e.down[k * e.rank_padded + r], sum);
    sum = warp_sum(sum);
    if (lane_of_warp() != 0) continue;
    if (e.gates_in.data != nullptr) sum = sum * element_of(e.gates_in, m / e.rows_of_sample, r);
    e.shrunk[m * e.rank_padded + r] = sum;
  }
}

// ---- for each four sums
// --------------------------------------------------------------------------------------

// h of row m at four slots, from their sums.
__device__ __forceinline__ void linear_quad(const Epilogue& e, int64_t m, int64_t slot, float (&h)[kQuad]) {
  for (int j = 0; j < kQuad; ++j) {
    if (e.row_scale != nullptr) h[j] = h[j] * e.row_scale[m];
    if (e.scale != nullptr && e.bias != nullptr) {
      h[j] = fma_(h[j], e.scale[slot + j], e.bias[slot + j]);
    } else if (e.scale != nullptr) {
      h[j] = h[j] * e.scale[slot + j];
    } else if (e.bias != nullptr) {
      h[j] = h[j] + e.bias[slot + j];
    }
  }
  for (int64_t r = 0; r < e.rank; ++r) {
    const float p = e.shrunk[m * e.rank_padded + r];
    for (int j = 0; j < kQuad; ++j) h[j] = fma_(p, e.up[r * e.slots + slot + j], h[j]);
  }
}

// Whether y and the residual can be written and read in fours.
__device__ __forceinline__ bool is_quad(const Rows& t, int64_t at) {
  return t.element == 1 && (reinterpret_cast<uintptr_t>(t.data) + at * size_of(t.dtype)) %
                                   static_cast<uintptr_t>(kQuad * size_of(t.dtype)) ==
                               0;
}

// y of row m at four columns, after the activation function.
__device__ inline void write_quad(const Epilogue& e, int64_t m, int64_t column, float (&h)[kQuad]) {
  const int there = static_cast<int>(e.outputs - column < kQuad ? e.outputs - column : kQuad);
  if (there <= 0) return;
  const int64_t sample = e.samples_of_gate() == 1 ? 0 : m / e.rows_of_sample;
  float r[kQuad] = {};
  if (e.residual.data != nullptr) {
    const int64_t at = e.residual.at(m) + column * e.residual.element;
    if (there == kQuad && is_quad(e.residual, at)) {
      load_quad(e.residual.data, e.residual.dtype, at, r);
    } else {
      for (int j = 0; j < there; ++j)
        r[j] = load_as<float>(e.residual.data, e.residual.dtype, at + j * e.residual.element);
    }
  }
  for (int j = 0; j < there; ++j) {
    const float gate = e.gate == nullptr ? 1.0f : e.gate[sample * e.outputs + column + j];
    h[j] = e.residual.data == nullptr ? h[j] * gate : fma_(h[j], gate, r[j]);
  }
  const int64_t at = e.y.at(m) + column * e.y.element;
  if (there == kQuad && is_quad(e.y, at)) return store_quad(e.y.data, e.y.dtype, at, h);
  for (int j = 0; j < there; ++j) store_as(e.y.data, e.y.dtype, at + j * e.y.element, h[j]);
}

// Row m of a tile of panels from slot `first` on, four slots for each call: quad `quad` of them. sums(n, h)
// gives those of slots first + 4 n ..., as float32.
template <class Sums>
__device__ void finish_quad(const Epilogue& e, int64_t m, int64_t first, int quad, const Sums& sums) {
  constexpr int kQuads = kPanel / kQuad;
  const int64_t slot = first + quad * kQuad;
  if (m >= e.rows || slot >= e.slots || (e.gated && quad / kQuads % 2 != 0)) return;
  float h[kQuad];
  sums(quad, h);
  linear_quad(e, m, slot, h);
  if (!e.gated) {
    for (float& x : h) x = activate(e.activation, x);
    return write_quad(e, m, slot, h);
  }
  float gate[kQuad];
  sums(quad + kQuads, gate);
  linear_quad(e, m, slot + kPanel, gate);
  for (int j = 0; j < kQuad; ++j) h[j] = h[j] * activate(e.activation, gate[j]);
  write_quad(e, m, slot / (2 * kPanel) * kPanel + slot % kPanel, h);
}

}  // namespace
}  // namespace fastdiff::quant
