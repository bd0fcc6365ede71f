// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on CUDA without tensor cores: float and double arithmetic, any dtype, strides,
// alignment.
//
// A block of threads has a tile of queries, and takes the keys that it sees in tiles through shared memory;
// keys and values take turns in the same place.
#pragma once

#include "attention/block_sparse_attention/block_sparse_attention.h"
#include "attention/tiles.cuh"

namespace fastdiff::block_sparse_attention {
namespace {

inline constexpr const char* kBadPlan =
    "fastdiff::block_sparse_attention: offsets, columns and masks must be those of a plan for this call";

namespace general {

using namespace attention;

template <class G>
constexpr size_t smem_bytes() {
  return (G::kRowTile + G::kColumnTile + G::kWeightTile) * sizeof(typename G::Real);
}

// What is known of a thread's rows so far.
template <class G>
struct Running {
  using T = typename G::Real;
  T highest[G::kRows], total[G::kRows];
  typename G::Sums sums;

  __device__ Running() {
#pragma unroll
    for (int i = 0; i < G::kRows; ++i) {
      highest[i] = kLowest<T>;
      total[i] = T(0);
#pragma unroll
      for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
        for (int e = 0; e < G::kPack; ++e) sums[i][g][e] = T(0);
    }
  }

  // Scores to their exponentials, with everything that a new maximum changes.
  __device__ __forceinline__ void take(typename G::Scores& scores) {
#pragma unroll
    for (int i = 0; i < G::kRows; ++i) {
      T most = highest[i], sum = T(0);
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) most = scores[i][j] > most ? scores[i][j] : most;
      most = row_highest(most);
      const T shrink = power_of_two(highest[i] - most);
      highest[i] = most;
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) {
        scores[i][j] = power_of_two(scores[i][j] - most);
        sum = sum + scores[i][j];
      }
      total[i] = fma_(total[i], shrink, row_total(sum));
#pragma unroll
      for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
        for (int e = 0; e < G::kPack; ++e) sums[i][g][e] = sums[i][g][e] * shrink;
    }
  }
};

template <class G>
__device__ __forceinline__ void finish_scores(const Params& p, const QueryTile& queries, const KeyTile& keys,
                                              typename G::Scores& scores) {
  using T = typename G::Real;
  const int64_t bias = p.bias.at(queries.sample, queries.head, queries.first) + keys.first * p.bias.key;
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j) {
      const int q = G::row(i), k = G::column(j);
      if (q >= queries.count) continue;  // zeros, and stored nowhere
      scores[i][j] = k >= keys.count
                         ? -static_cast<T>(INFINITY)
                         : finish_score(p.plan, p.bias, keys.bits, queries.within + q, keys.within + k,
                                        bias + q * p.bias.query + k * p.bias.key, scores[i][j]);
    }
}

template <class G>
__device__ __forceinline__ void store(const Params& p, const QueryTile& queries, const Running<G>& running) {
  using T = typename G::Real;
  const QueryTile& t = queries;
  store_sums<G>(p.out, p.out.at(t.sample, t.head, t.first), t.count, p.extent.head_dim, running.sums,
                [&running](int i) { return running.total[i] == T(0) ? T(0) : T(1) / running.total[i]; });
  if (G::x() != 0) return;
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    if (G::row(i) >= t.count) continue;
    const double total = running.total[i];
    const double lse = total == 0 ? -INFINITY : running.highest[i] * kLn2 + log(total);
    store_as<double>(p.lse.data, p.lse.dtype, p.lse.at(t.sample, t.head, t.first + G::row(i)), lse);
  }
}

template <class G>
__global__ void __launch_bounds__(G::kThreads) attend(const Params p) {
  using T = typename G::Real;
  T* const queries = dynamic_smem<T>();        // [kHeight][kDim]
  T* const moving = queries + G::kRowTile;     // [kWidth][kDim], keys and then values
  T* const weights = moving + G::kColumnTile;  // [kHeight][kWidth]
  const QueryTile tile = query_tile<G::kHeight>(p.extent, p.plan, blockIdx.x);
  if (tile.count <= 0) return;  // past the last query
  const int64_t kv = tile.head / (p.extent.heads / p.extent.kv_heads);
  const int dim = p.extent.head_dim;
  load_tokens<G, G::kHeight>(p.q, p.q.rows(tile.sample, tile.head, tile.first), tile.count, dim,
                             static_cast<T>(p.scale * kLog2E), queries);
  Walk<G::kWidth> walk(p.plan, static_cast<int>(p.extent.keys),
                       entries_of(p.plan, tile.sample, tile.head, tile.row, kBadPlan), kBadPlan);
  Running<G> running;
  while (walk.next()) {
    const KeyTile& keys = walk.tile();
    load_tokens<G, G::kWidth>(p.k, p.k.rows(tile.sample, kv, keys.first), keys.count, dim, T(1), moving);
    __syncthreads();
    typename G::Scores scores;
    multiply<G>(queries, moving, dim, scores);
    finish_scores<G>(p, tile, keys, scores);
    running.take(scores);
    store_weights<G>(scores, weights);
    __syncthreads();  // all have read the keys
    load_tokens<G, G::kWidth>(p.v, p.v.rows(tile.sample, kv, keys.first), keys.count, dim, T(1), moving);
    __syncthreads();
    accumulate<G>(weights, moving, keys.count, dim, running.sums);
    __syncthreads();  // and the values
  }
  store<G>(p, tile, running);
}

template <class G>
void launch_tiling(const Params& p, cudaStream_t stream) {
  static_assert(smem_bytes<G>() <= kMostSmem);
  const unsigned blocks = blocks_for(query_tiles(p.extent, p.plan, G::kHeight), 1);
  launch(&attend<G>, dim3(blocks), dim3(G::kThreads), smem_bytes<G>(), stream, p);
}

inline void launch_general(const Params& p, cudaStream_t stream) {
  const int dim = p.extent.head_dim;
  if (p.wide()) {
    if (dim <= 64) return launch_tiling<Tiling<double, 64, 2, 2>>(p, stream);
    if (dim <= 128) return launch_tiling<Tiling<double, 128, 2, 2>>(p, stream);
    return launch_tiling<Tiling<double, 256, 1, 1>>(p, stream);
  }
  if (dim <= 64) return launch_tiling<Tiling<float, 64, 4, 4>>(p, stream);
  if (dim <= 128) return launch_tiling<Tiling<float, 128, 4, 4>>(p, stream);
  return launch_tiling<Tiling<float, 256, 2, 2>>(p, stream);
}

}  // namespace general

}  // namespace
}  // namespace fastdiff::block_sparse_attention
