// SPDX-License-Identifier: Apache-2.0
// Products of tiles in shared memory by ordinary arithmetic: for float and double, from tensors of any dtype
// and strides.
#pragma once

#include <cmath>

#include "attention/plan.cuh"

namespace fastdiff::attention {
namespace {

// 16 bytes of a tile.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

// A block of threads, kDown x 16. A tile of scores is [kHeight][kWidth]: thread (y, x) has the rows y kRows
// ... and the columns x, x + 16, ...; sums are [kHeight][kDim]: of the same rows a Pack in every 16 Packs. So
// all that is known of a row is known to half a warp.
template <class T, int kDim_, int kRows_, int kColumns_, int kDown_ = 16>
struct Tiling {
  using Real = T;
  static constexpr int kDim = kDim_, kRows = kRows_, kColumns = kColumns_, kDown = kDown_, kAcross = 16;
  static constexpr int kThreads = kDown * kAcross;
  static constexpr int kHeight = kDown * kRows, kWidth = kAcross * kColumns;
  static constexpr int kPack = Pack<T>::kSize;
  static constexpr int kGroups = kDim / (kAcross * kPack);
  // Rows of 16 bytes more: then 8 rows begin in 8 different places of the banks.
  static constexpr int kPitch = kDim + kPack, kWeightPitch = kWidth + kPack;
  static constexpr int kRowTile = kHeight * kPitch, kColumnTile = kWidth * kPitch;  // [rows or columns][kDim]
  static constexpr int kWeightTile = kHeight * kWeightPitch;

  using Scores = T[kRows][kColumns];
  using Sums = T[kRows][kGroups][kPack];

  static __device__ __forceinline__ int x() { return static_cast<int>(threadIdx.x) % kAcross; }
  static __device__ __forceinline__ int y() { return static_cast<int>(threadIdx.x) / kAcross; }
  static __device__ __forceinline__ int row(int i) { return y() * kRows + i; }
  static __device__ __forceinline__ int column(int j) { return x() + j * kAcross; }
  static __device__ __forceinline__ int element(int group, int e) {
    return (group * kAcross + x()) * kPack + e;
  }
};

// A tile in shared memory of the rows of `count` tokens, times a factor; zeros in the
// rest of its kTokens rows and of kDim. Who reads it waits for a barrier.
template <class G, int kTokens>
__device__ void load_tokens(const Heads& t, const Rows& rows, int count, int dim, typename G::Real factor,
                            typename G::Real* tile) {
  using T = typename G::Real;
  constexpr int kPacks = G::kDim / G::kPack;
  const DType own = sizeof(T) == 8 ? DType::f64 : DType::f32;
  const auto address = reinterpret_cast<uintptr_t>(static_cast<const T*>(t.data) + rows.first);
  const bool whole = t.dtype == own && t.element == 1 && address % 16 == 0 && t.row % G::kPack == 0;
  for (int n = static_cast<int>(threadIdx.x); n < kTokens * kPacks; n += G::kThreads) {
    const int token = n / kPacks, d = n % kPacks * G::kPack;
    Pack<T> pack = {};
    if (token < count && d < dim) {
      const int64_t from = place_of(t, rows, token) + d * t.element;
      if (whole) {
        pack = *reinterpret_cast<const Pack<T>*>(static_cast<const T*>(t.data) + from);
      } else {
        for (int e = 0; e < G::kPack; ++e) pack.v[e] = load_as<T>(t.data, t.dtype, from + e * t.element);
      }
#pragma unroll
      for (int e = 0; e < G::kPack; ++e) pack.v[e] = pack.v[e] * factor;
    }
    *reinterpret_cast<Pack<T>*>(tile + token * G::kPitch + d) = pack;
  }
}

// The tile, as load_tokens has left it, moves by `mix` of the way to the same tokens of another tensor.
template <class G, int kTokens>
__device__ void mix_tokens(const Heads& end, const Rows& rows, int count, int dim, typename G::Real factor,
                           typename G::Real mix, typename G::Real* tile) {
  using T = typename G::Real;
  constexpr int kPacks = G::kDim / G::kPack;
  for (int n = static_cast<int>(threadIdx.x); n < kTokens * kPacks;
       n += G::kThreads) {  // as there: no barrier
    const int token = n / kPacks, d = n % kPacks * G::kPack;
    if (token >= count || d >= dim) continue;
    const int64_t from = place_of(end, rows, token) + d * end.element;
    for (int e = 0; e < G::kPack; ++e) {
      T& x = tile[token * G::kPitch + d + e];
      x = fma_(mix, load_as<T>(end.data, end.dtype, from + e * end.element) * factor - x, x);
    }
  }
}

// scores[row][column] = rows[row] . columns[column]; D is a multiple of 8.
template <class G>
__device__ __forceinline__ void multiply(const typename G::Real* rows, const typename G::Real* columns,
                                         int dim, typename G::Scores& scores) {
  using T = typename G::Real;
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j) scores[i][j] = T(0);
#pragma unroll 2
  for (int d = 0; d < dim; d += G::kPack) {
    Pack<T> a[G::kRows], b[G::kColumns];
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
      a[i] = *reinterpret_cast<const Pack<T>*>(rows + G::row(i) * G::kPitch + d);
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j)
      b[j] = *reinterpret_cast<const Pack<T>*>(columns + G::column(j) * G::kPitch + d);
#pragma unroll
    for (int e = 0; e < G::kPack; ++e)
#pragma unroll
      for (int i = 0; i < G::kRows; ++i)
#pragma unroll
        for (int j = 0; j < G::kColumns; ++j) scores[i][j] = fma_(a[i].v[e], b[j].v[e], scores[i][j]);
  }
}

// Through shared memory, to the half of a warp that has the same rows.
template <class G>
__device__ __forceinline__ void store_weights(const typename G::Scores& scores, typename G::Real* weights) {
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j) weights[G::row(i) * G::kWeightPitch + G::column(j)] = scores[i][j];
}

// sums[row] += sum over `count` columns of weights[row][column] columns[column]. What the weights have beyond
// them is multiplied by zeros, or is zero.
template <class G>
__device__ __forceinline__ void accumulate(const typename G::Real* weights, const typename G::Real* columns,
                                           int count, int dim, typename G::Sums& sums) {
  using T = typename G::Real;
#pragma unroll 1
  for (int c = 0; c < count; c += G::kPack) {
    Pack<T> w[G::kRows];
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
      w[i] = *reinterpret_cast<const Pack<T>*>(weights + G::row(i) * G::kWeightPitch + c);
#pragma unroll
    for (int e = 0; e < G::kPack; ++e)
#pragma unroll
      for (int g = 0; g < G::kGroups; ++g) {
        if (g * G::kAcross * G::kPack >= dim) continue;
        const Pack<T> x = *reinterpret_cast<const Pack<T>*>(columns + (c + e) * G::kPitch + G::element(g, 0));
#pragma unroll
        for (int i = 0; i < G::kRows; ++i)
#pragma unroll
          for (int n = 0; n < G::kPack; ++n) sums[i][g][n] = fma_(w[i].v[e], x.v[n], sums[i][g][n]);
      }
  }
}

// The first `count` rows of the sums, times row_factor(i).
template <class G, class Factor>
__device__ void store_sums(const Heads& t, int64_t at, int count, int dim, const typename G::Sums& sums,
                           const Factor& row_factor) {
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    if (G::row(i) >= count) continue;
    const typename G::Real factor = row_factor(i);
#pragma unroll
    for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
      for (int e = 0; e < G::kPack; ++e) {
        const int d = G::element(g, e);
        if (d < dim)
          store_as(t.data, t.dtype, at + G::row(i) * t.row + d * t.element, sums[i][g][e] * factor);
      }
  }
}

// ---- rows of scores --------------------------------------------------------------------------------------

// Over the 16 threads that have the same rows, in each of them.
template <class T>
__device__ __forceinline__ T row_highest(T x) {
#pragma unroll
  for (int lanes = 8; lanes > 0; lanes /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, x, lanes);
    x = other > x ? other : x;
  }
  return x;
}
template <class T>
__device__ __forceinline__ T row_total(T x) {
#pragma unroll
  for (int lanes = 8; lanes > 0; lanes /= 2) x = x + __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

__device__ __forceinline__ float power_of_two(float x) {
  return exp2_(x);
}
__device__ __forceinline__ double power_of_two(double x) {
  return exp2(x);
}

// A score with its bias, or -inf where it is not seen: of the q-th and k-th of two tiles.
template <class T>
__device__ __forceinline__ T finish_score(const Plan& plan, const PairBias& bias, const QueryTile& queries,
                                          const KeyTile& keys, int q, int k, T score) {
  if (!sees(plan, keys.bits, queries.within + q, keys.within + k)) return -static_cast<T>(INFINITY);
  if (bias.data == nullptr) return score;
  return score +
         bias_of<T>(bias, element_of(bias, queries.sample, queries.head, queries.first + q, keys.first + k));
}

}  // namespace
}  // namespace fastdiff::attention
