// SPDX-License-Identifier: Apache-2.0
// Masks and biases of a warp's tile of scores, [16 queries][keys] as fragments.
#pragma once

#include <cmath>

#include "attention/fragments.cuh"

namespace fastdiff::attention {
namespace {

// Comes with a tile of keys into shared memory, for all queries of a block of threads.
template <int kKeys>
struct KeyExtras {
  static constexpr int kWords = kTileRows / 32;
  float bias[kKeys];  // in units of log 2
  uint32_t bits[kKeys][kWords];
};

// Starts to copy the bits; gives the bias of this thread's key, for store_bias.
template <int kKeys>
__device__ __forceinline__ float fetch_extras(const Plan& plan, const PairBias& bias,
                                              const QueryTile& queries, const KeyTile& keys,
                                              KeyExtras<kKeys>& extras) {
  constexpr int kWords = KeyExtras<kKeys>::kWords;
  const int thread = static_cast<int>(threadIdx.x);
  if (keys.bits != nullptr && thread < kKeys * kWords) {
    const int k = thread / kWords, word = thread % kWords;
    copy_word(plan, keys.bits, keys.within + k, queries.within / 32 + word, k < keys.count,
              &extras.bits[k][word]);
  }
  if (!bias.is_of_keys() || thread >= keys.count) return 0;
  return bias_of<float>(bias, element_of(bias, queries.sample, queries.head, 0, keys.first + thread));
}
template <int kKeys>
__device__ __forceinline__ void store_bias(const PairBias& bias, float value, KeyExtras<kKeys>& extras) {
  if (bias.is_of_keys() && threadIdx.x < kKeys) extras.bias[threadIdx.x] = value;
}

// Straight from its tensor: a bias of pairs.
template <int kTiles>
__device__ __forceinline__ void scale_and_add_bias(const PairBias& bias, const QueryTile& queries,
                                                   const KeyTile& keys, int first_row, float scale,
                                                   float (&scores)[kTiles][4]) {
  const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int q = first_row + g + 8 * i;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = 8 * n + 2 * t + e;
        const bool there = q < queries.count && k < keys.count;
        const float value = there ? bias_of<float>(bias, element_of(bias, queries.sample, queries.head,
                                                                    queries.first + q, keys.first + k))
                                  : 0.0f;
        scores[n][2 * i + e] = fma_(scores[n][2 * i + e], scale, value);
      }
  }
}

// Products to scores in units of log 2, with the bias, -inf where nothing is seen. `first_row`: the warp's.
template <int kTiles>
__device__ __forceinline__ void finish_scores(const PairBias& bias, const QueryTile& queries,
                                              const KeyTile& keys, const KeyExtras<8 * kTiles>& extras,
                                              int first_row, float scale, float (&scores)[kTiles][4]) {
  const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  if (bias.is_of_pairs()) {
    scale_and_add_bias(bias, queries, keys, first_row, scale, scores);
  } else {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = 8 * n + 2 * t + e % 2;
        const float value = bias.is_of_keys() && k < keys.count ? extras.bias[k] : 0.0f;
        scores[n][e] = fma_(scores[n][e], scale, value);
      }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int k = 8 * n + 2 * t + e;
      uint32_t word = k < keys.count ? 0xffffffffu : 0;
      if (word != 0 && keys.bits != nullptr) word = extras.bits[k][first_row / 32] >> (first_row % 32 + g);
      if ((word & 1u) == 0) scores[n][e] = -INFINITY;
      if ((word & 0x100u) == 0) scores[n][2 + e] = -INFINITY;
    }
}

}  // namespace
}  // namespace fastdiff::attention
