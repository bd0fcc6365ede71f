// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on CUDA without tensor cores: float and double arithmetic, any dtype, strides,
// alignment.
//
// A block of threads has a tile of queries, and takes the keys that it sees in tiles through shared memory;
// keys and values take turns in the same place.
#pragma once

#include "attention/block_sparse_attention/block_sparse_attention_math.h"
#include "attention/tiles.cuh"

namespace fastdiff::block_sparse_attention {
namespace {

inline constexpr const char* kBadPlan =
    "fastdiff::block_sparse_attention: offsets, columns and masks must be those of a plan for this call";

// Those of a tile, or of a split of it.
__device__ __forceinline__ attention::Entries entries_of(const Params& p, const attention::QueryTile& tile,
                                                         int split) {
  const auto [begin, end] = attention::entries_of(p.plan, tile.sample, tile.head, tile.row, kBadPlan);
  if (p.splits == 1) return {begin, end};
  const int count = end - begin;
  return {begin + begin_of_split(count, split, p.splits), begin + begin_of_split(count, split + 1, p.splits)};
}

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

  __device__ Running() { begin(); }

  __device__ __forceinline__ void begin() {
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
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j) {
      const int q = G::row(i), k = G::column(j);
      if (q >= queries.count) continue;  // zeros, and stored nowhere
      scores[i][j] = k >= keys.count ? -static_cast<T>(INFINITY)
                                     : finish_score(p.plan, p.bias, queries, keys, q, k, scores[i][j]);
    }
}

// What a set of keys, or a split, has given: its lse; its sums times what makes them a part of out.
template <class G>
__device__ __forceinline__ void finish(const Params& p, const QueryTile& t, int part, Running<G>& running) {
  using T = typename G::Real;
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    if (G::row(i) >= t.count) continue;
    const int64_t query = t.first + G::row(i);
    const double total = running.total[i];
    T factor = total == 0 ? T(0) : T(1) / running.total[i];
    if (p.weights.data != nullptr)
      factor = factor * load_as<T>(p.weights.data, p.weights.dtype,
                                   p.weights.at(t.sample, t.head, query) + part * p.weights_of_set);
#pragma unroll
    for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
      for (int e = 0; e < G::kPack; ++e) running.sums[i][g][e] = running.sums[i][g][e] * factor;
    const double lse = total == 0 ? -INFINITY : running.highest[i] * kLn2 + log(total);
    if (G::x() == 0)
      store_as<double>(p.lse.data, p.lse.dtype, p.lse.at(t.sample, t.head, query) + part * p.lse_of_part,
                       lse);
  }
}

template <class G>
__device__ __forceinline__ void add(const typename G::Sums& more, typename G::Sums& sums) {
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
      for (int e = 0; e < G::kPack; ++e) sums[i][g][e] = sums[i][g][e] + more[i][g][e];
}

// kSets: more than one, whose results are added up in registers.
template <class G, bool kSets>
__global__ void __launch_bounds__(G::kThreads) attend(const Params p) {
  using T = typename G::Real;
  T* const queries = dynamic_smem<T>();        // [kHeight][kDim]
  T* const moving = queries + G::kRowTile;     // [kWidth][kDim], keys and then values
  T* const weights = moving + G::kColumnTile;  // [kHeight][kWidth]
  const auto split = static_cast<int>(blockIdx.y);
  const QueryTile tile = query_tile<G::kHeight>(p.extent, p.plan, blockIdx.x);
  if (tile.count <= 0) return;  // past the last query
  const int64_t kv = tile.head / (p.extent.heads / p.extent.kv_heads);
  const int dim = p.extent.head_dim;
  const auto factor = static_cast<T>(p.scale * kLog2E);
  load_tokens<G, G::kHeight>(p.q, p.q.rows(tile.sample, tile.head, tile.first), tile.count, dim, factor,
                             queries);
  if (p.q_end.data != nullptr)
    mix_tokens<G, G::kHeight>(p.q_end, p.q_end.rows(tile.sample, tile.head, tile.first), tile.count, dim,
                              factor, static_cast<T>(p.mix), queries);
  Walk<G::kWidth> walk(p.plan, entries_of(p, tile, split), kBadPlan);
  Running<G> running;
  const auto attend_to_set = [&] {
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
  };
  const auto store = [&](const typename G::Sums& sums) {
    store_sums<G>(p.out, p.out.at(tile.sample, tile.head, tile.first) + split * p.out_of_split, tile.count,
                  dim, sums, [](int) { return T(1); });
  };
  attend_to_set();
  finish<G>(p, tile, split, running);
  if constexpr (kSets) {
    typename G::Sums sums = {};
    add<G>(running.sums, sums);
    for (int set = 1; set < p.plan.sets; ++set) {
      walk.next_set();
      running.begin();
      attend_to_set();
      finish<G>(p, tile, set, running);
      add<G>(running.sums, sums);
    }
    store(sums);
  } else {
    store(running.sums);
  }
}

template <class G, bool kSets = false>
void launch_tiling(const Params& p, cudaStream_t stream) {
  static_assert(smem_bytes<G>() <= kMostSmem);
  const unsigned blocks = blocks_for(query_tiles(p.extent, p.plan, G::kHeight), 1);
  launch(&attend<G, kSets>, dim3(blocks, p.splits), dim3(G::kThreads), smem_bytes<G>(), stream, p);
}

inline void launch_general(const Params& p, cudaStream_t stream) {
  const int dim = p.extent.head_dim;
  if (p.plan.sets > 1) {
    if (p.wide()) return launch_tiling<Tiling<double, 256, 1, 1>, true>(p, stream);
    if (dim <= 128) return launch_tiling<Tiling<float, 128, 2, 2>, true>(p, stream);
    return launch_tiling<Tiling<float, 256, 1, 1>, true>(p, stream);
  }
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
