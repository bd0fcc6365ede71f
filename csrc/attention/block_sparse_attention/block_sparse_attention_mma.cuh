// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the tensor cores: float16 and bfloat16, in 16-byte chunks.
//
// A block of threads has 64 queries, a warp 16 of them, with its scores, softmax and sums in registers. The
// keys that they see and the values go through shared memory in tiles, the next ones on their way while these
// are worked on.
#pragma once

#include <cmath>

#include "attention/block_sparse_attention/block_sparse_attention.h"
#include "attention/block_sparse_attention/block_sparse_attention_general.cuh"
#include "attention/scores.cuh"

namespace fastdiff::block_sparse_attention {
namespace {
namespace mma {

using namespace attention;

template <int kDim_>
struct Sizes {
  static constexpr int kDim = kDim_;
  static constexpr int kQueries = kTileRows, kKeys = kDim > 128 ? 32 : 64;
  static constexpr int kTiles = kKeys / 8;  // of scores
  // Up to 128 the queries stay in registers, and the second stage's keys take their place in shared memory.
  static constexpr bool kKeepsQueries = kDim <= 128;
  // At 256 all tiles go the way of those that are not whole: the registers do not suffice for both.
  static constexpr bool kHasWhole = kDim <= 192;
};

// Shared memory: one stage of keys.
template <class S>
struct Stage {
  uint16_t k[S::kKeys * S::kDim], v[S::kKeys * S::kDim];
};
template <class S>
struct alignas(16) Memory {
  Stage<S> stage[2];
  uint16_t queries[S::kKeepsQueries ? 8 : S::kQueries * S::kDim];
  KeyExtras<S::kKeys> extras[2];

  __device__ uint16_t* queries_at_first() { return S::kKeepsQueries ? stage[1].k : queries; }
};

// One warp's running softmax, of its rows g and g + 8.
template <class S>
struct Running {
  float highest[2] = {kLowest<float>, kLowest<float>};  // in units of log 2
  float total[2] = {0, 0};                              // of this lane's columns
  float sums[S::kDim / 8][4];

  // Scores, times `factor` in units of log 2, to their exponentials, with everything that a new maximum
  // changes.
  __device__ __forceinline__ void take(float (&scores)[S::kTiles][4], float factor) {
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = fmaxf(scores[0][2 * i], scores[0][2 * i + 1]);
#pragma unroll
      for (int n = 1; n < S::kTiles; ++n) most = fmaxf(most, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      most = fmaxf(highest[i], quad_highest(most) * factor);
      shrink[i] = ptx::exp2_approx(highest[i] - most);
      highest[i] = most;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e) {
          scores[n][e] = ptx::exp2_approx(fma_(scores[n][e], factor, -most));
          sum += scores[n][e];
        }
      total[i] = fma_(total[i], shrink[i], sum);
    }
    if (__all_sync(kAllLanes, shrink[0] == 1 && shrink[1] == 1)) return;
#pragma unroll
    for (int c = 0; c < S::kDim / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[c][e] *= shrink[e / 2];
  }
};

// Where a block of threads is, and what it has.
template <bool kBfloat, class S>
class Block {
 public:
  __device__ Block(const Params& p, Memory<S>& memory)
      : p_(p),
        memory_(memory),
        tile_(query_tile<S::kQueries>(p.extent, p.plan, blockIdx.x)),
        kv_(tile_.head / static_cast<int>(p.extent.heads / p.extent.kv_heads)),
        first_row_(warp_of_block() * kWarpRows),
        scale_(static_cast<float>(p.scale * kLog2E)) {}

  __device__ void run() {
    if (tile_.count <= 0) return;  // past the last query
    Walk<S::kKeys> walk(p_.plan, static_cast<int>(p_.extent.keys),
                        entries_of(p_.plan, tile_.sample, tile_.head, tile_.row, kBadPlan), kBadPlan);
    uint16_t* const queries = memory_.queries_at_first();
    copy_tokens<S::kDim>(p_.q, p_.q.rows(tile_.sample, tile_.head, tile_.first), tile_.count, S::kQueries,
                         p_.extent.head_dim, queries);
    ptx::cp_async_commit();
    bool more = walk.next();
    if (more) store_bias(p_.bias, fetch(walk.tile(), 0), memory_.extras[0]);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncthreads();  // the queries are there
    keep_queries(queries);
    clear(running_.sums);
    for (int stage = 0; more; stage ^= 1) {
      const KeyTile keys = walk.tile();
      ptx::cp_async_wait<0>();
      __syncthreads();  // this stage is there, and nobody needs the other one
      more = walk.next();
      const float bias = more ? fetch(walk.tile(), stage ^ 1) : 0.0f;
      ptx::cp_async_commit();
      if (first_row_ < tile_.count) {
        if (S::kHasWhole && keys.count == S::kKeys)
          work<true>(keys, stage);
        else
          work<false>(keys, stage);
      }
      if (more) store_bias(p_.bias, bias, memory_.extras[stage ^ 1]);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // the results go where keys were
    store();
  }

 private:
  __device__ __forceinline__ void keep_queries(const uint16_t* queries) {
    if constexpr (S::kKeepsQueries) {
#pragma unroll
      for (int k = 0; k < S::kDim / 16; ++k)
        ptx::ldmatrix_x4(queries_[k], rows_at<S::kDim>(queries, first_row_, k));
    }
  }

  // Starts to copy a tile of keys and values; gives the bias of this thread's key.
  __device__ __forceinline__ float fetch(const KeyTile& keys, int stage) {
    const int rows = (keys.count + 15) / 16 * 16, dim = p_.extent.head_dim;
    copy_tokens<S::kDim>(p_.k, p_.k.rows(tile_.sample, kv_, keys.first), keys.count, rows, dim,
                         memory_.stage[stage].k);
    copy_tokens<S::kDim>(p_.v, p_.v.rows(tile_.sample, kv_, keys.first), keys.count, rows, dim,
                         memory_.stage[stage].v);
    return fetch_extras(p_.plan, p_.bias, tile_, keys, memory_.extras[stage]);
  }

  template <bool kWhole>
  __device__ __forceinline__ void work(const KeyTile& keys, int stage) {
    float scores[S::kTiles][4];
    const auto query = [this](int k, uint32_t (&a)[4]) {
      if constexpr (S::kKeepsQueries) {
#pragma unroll
        for (int e = 0; e < 4; ++e) a[e] = queries_[k][e];
      } else {
        ptx::ldmatrix_x4(a, rows_at<S::kDim>(memory_.queries, first_row_, k));
      }
    };
    multiply_columns<kBfloat, kWhole, S::kDim>(query, memory_.stage[stage].k, keys.count, scores);
    const bool plain =
        keys.count == S::kKeys && keys.bits == nullptr && p_.bias.data == nullptr && scale_ > 0;
    if (!plain) finish_scores(p_.bias, tile_, keys, memory_.extras[stage], first_row_, scale_, scores);
    running_.take(scores, plain ? scale_ : 1.0f);
    accumulate_rows<kBfloat, kWhole, S::kDim>(scores, memory_.stage[stage].v, keys.count, running_.sums);
  }

  __device__ __forceinline__ void store() {
    const int count = tile_.count - first_row_;
    if (count <= 0) return;
    float part[2];
    const int first = tile_.first + first_row_;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = quad_total(running_.total[i]);
      part[i] = total == 0 ? 0.0f : 1.0f / total;
      const int row = lane_of_warp() / 4 + 8 * i;
      if (lane_of_warp() % 4 != 0 || row >= count) continue;
      const float lse =
          total == 0 ? -INFINITY : fma_(running_.highest[i], static_cast<float>(kLn2), logf(total));
      store_as<float>(p_.lse.data, p_.lse.dtype, p_.lse.at(tile_.sample, tile_.head, first + row), lse);
    }
    uint16_t* const rows = reinterpret_cast<uint16_t*>(&memory_) + first_row_ * S::kDim;
    store_rows<kBfloat, S::kDim>(p_.out, p_.out.at(tile_.sample, tile_.head, first), min(count, kWarpRows),
                                 p_.extent.head_dim, running_.sums, part, rows);
  }

  const Params& p_;
  Memory<S>& memory_;
  const QueryTile tile_;
  const int kv_;         // the head of its keys
  const int first_row_;  // of this warp
  const float scale_;    // to units of log 2
  uint32_t queries_[S::kKeepsQueries ? S::kDim / 16 : 1][4];
  Running<S> running_;
};

template <bool kBfloat, int kDim>
__global__ void __launch_bounds__(kMmaThreads) attend(const Params p) {
  using S = Sizes<kDim>;
  Block<kBfloat, S>(p, *dynamic_smem<Memory<S>>()).run();
}

template <bool kBfloat, int kDim>
void launch_dim(const Params& p, cudaStream_t stream) {
  static_assert(sizeof(Memory<Sizes<kDim>>) <= kMostSmem);
  const unsigned blocks = blocks_for(query_tiles(p.extent, p.plan, kTileRows), 1);
  launch(&attend<kBfloat, kDim>, dim3(blocks), dim3(kMmaThreads), sizeof(Memory<Sizes<kDim>>), stream, p);
}

template <bool kBfloat>
void launch_type(const Params& p, cudaStream_t stream) {
  with_wide_dim(p.extent.head_dim, [&](auto dim) { launch_dim<kBfloat, dim()>(p, stream); });
}

// Whether all can be read in chunks.
inline bool fits(const Params& p) {
  const Extent& e = p.extent;
  return has_chunks(p.q, e.samples, e.heads) && has_chunks(p.k, e.samples, e.kv_heads) &&
         has_chunks(p.v, e.samples, e.kv_heads);
}

inline void launch_mma(const Params& p, cudaStream_t stream) {
  if (p.q.dtype == DType::bf16) return launch_type<true>(p, stream);
  launch_type<false>(p, stream);
}

}  // namespace mma
}  // namespace
}  // namespace fastdiff::block_sparse_attention
