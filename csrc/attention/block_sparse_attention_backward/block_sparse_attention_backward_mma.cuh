// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward on the tensor cores: float16 and bfloat16, in 16-byte chunks.
//
// As without tensor cores there is a kernel for dq and one for dk, dv and dbias. Both have 64 stationary
// tokens, a warp 16 of them, and take the others through shared memory in tiles, the next ones on their way
// while these are worked on.
#pragma once

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_general.cuh"
#include "attention/scores.cuh"

namespace fastdiff::block_sparse_attention_backward {
namespace {
namespace mma {

using namespace attention;
using Query = general::Query<float>;

template <int kDim_>
struct Sizes {
  static constexpr int kDim = kDim_;
  static constexpr int kMoving = kDim <= 32 ? 64 : kDim <= 128 ? 32 : 16;  // tokens of a tile on its way
  static constexpr int kTiles = kMoving / 8;                               // of scores
  static constexpr int kMovingWords = kMoving < 32 ? 1 : kMoving / 32;     // of bits, if they are queries
  static constexpr bool kBothAtOnce = kDim <= 128;  // dk and dv, in the registers of one kernel
};

template <class S>
struct Moving {
  uint16_t first[S::kMoving * S::kDim], second[S::kMoving * S::kDim];  // k and v, or q and dout
};
template <class S>
struct Stationary {
  uint16_t first[kTileRows * S::kDim], second[kTileRows * S::kDim];  // q and dout, or k and v
};

template <int kDim>
__device__ __forceinline__ auto factors_of(const uint16_t* tile, int row) {
  return [tile, row](int k, uint32_t (&a)[4]) { ptx::ldmatrix_x4(a, rows_at<kDim>(tile, row, k)); };
}

// ---- dq --------------------------------------------------------------------------------------------------

template <class S>
struct alignas(16) QueryMemory {
  Stationary<S> own;
  Moving<S> stage[2];
  KeyExtras<S::kMoving> extras[2];
};

template <bool kBfloat, class S>
class QueryBlock {
 public:
  __device__ QueryBlock(const Params& p, const float* delta, QueryMemory<S>& memory)
      : p_(p),
        memory_(memory),
        tile_(query_tile<kTileRows>(p.extent, p.plan, blockIdx.x)),
        kv_(tile_.head / static_cast<int>(p.extent.heads / p.extent.kv_heads)),
        first_row_(warp_of_block() * kWarpRows),
        scale_(static_cast<float>(p.scale * kLog2E)) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + lane_of_warp() / 4 + 8 * i;
      query_[i] = row < tile_.count ? general::query_of(p, delta, tile_.sample, tile_.head, tile_.first + row)
                                    : general::no_query<float>();
    }
  }

  __device__ __forceinline__ void run() {
    if (tile_.count <= 0) return;  // past the last query
    Walk<S::kMoving> walk(p_.plan, entries_of(p_.plan, tile_.sample, tile_.head, tile_.row, kBadPlan),
                          kBadPlan);
    const int dim = p_.extent.head_dim;
    copy_tokens<S::kDim>(p_.q, p_.q.rows(tile_.sample, tile_.head, tile_.first), tile_.count, kTileRows, dim,
                         memory_.own.first);
    copy_tokens<S::kDim>(p_.dout, p_.dout.rows(tile_.sample, tile_.head, tile_.first), tile_.count, kTileRows,
                         dim, memory_.own.second);
    bool more = walk.next();
    if (more) store_bias(p_.bias, fetch(walk.tile(), 0), memory_.extras[0]);
    ptx::cp_async_commit();
    clear(dq_);
    for (int stage = 0; more; stage ^= 1) {
      const KeyTile keys = walk.tile();
      ptx::cp_async_wait<0>();
      __syncthreads();  // this stage is there, and nobody needs the other one
      more = walk.next();
      const float bias = more ? fetch(walk.tile(), stage ^ 1) : 0.0f;
      ptx::cp_async_commit();
      if (first_row_ < tile_.count) {
        if (keys.count == S::kMoving)
          work<true>(keys, stage);
        else
          work<false>(keys, stage);
      }
      if (more) store_bias(p_.bias, bias, memory_.extras[stage ^ 1]);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // a row that sees nothing has not waited for its queries
    const int count = tile_.count - first_row_;
    if (count <= 0) return;
    const auto scale = static_cast<float>(p_.scale);
    store_rows<kBfloat, S::kDim>(p_.dq, p_.dq.at(tile_.sample, tile_.head, tile_.first + first_row_),
                                 min(count, kWarpRows), dim, dq_, {scale, scale},
                                 memory_.own.first + first_row_ * S::kDim);
  }

 private:
  // Starts to copy a tile of keys and values; gives the bias of this thread's key.
  __device__ __forceinline__ float fetch(const KeyTile& keys, int stage) {
    const int rows = (keys.count + 15) / 16 * 16, dim = p_.extent.head_dim;
    copy_tokens<S::kDim>(p_.k, p_.k.rows(tile_.sample, kv_, keys.first), keys.count, rows, dim,
                         memory_.stage[stage].first);
    copy_tokens<S::kDim>(p_.v, p_.v.rows(tile_.sample, kv_, keys.first), keys.count, rows, dim,
                         memory_.stage[stage].second);
    return fetch_extras(p_.plan, p_.bias, tile_, keys, memory_.extras[stage]);
  }

  template <bool kWhole>
  __device__ __forceinline__ void work(const KeyTile& keys, int stage) {
    const Moving<S>& moving = memory_.stage[stage];
    float scores[S::kTiles][4], products[S::kTiles][4];
    multiply_columns<kBfloat, kWhole, S::kDim>(factors_of<S::kDim>(memory_.own.first, first_row_),
                                               moving.first, keys.count, scores);
    multiply_columns<kBfloat, kWhole, S::kDim>(factors_of<S::kDim>(memory_.own.second, first_row_),
                                               moving.second, keys.count, products);
    const bool plain = keys.count == S::kMoving && keys.bits == nullptr && p_.bias.data == nullptr;
    if (!plain) finish_scores(p_.bias, tile_, keys, memory_.extras[stage], first_row_, scale_, scores);
    weigh(plain ? scale_ : 1.0f, scores, products);
    accumulate_rows<kBfloat, kWhole, S::kDim>(scores, moving.first, keys.count, dq_);
  }

  // Scores, times `factor` in units of log 2, to ds.
  __device__ __forceinline__ void weigh(float factor, float (&scores)[S::kTiles][4],
                                        const float (&products)[S::kTiles][4]) const {
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Query& query = query_[e / 2];
        scores[n][e] =
            ptx::exp2_approx(fma_(scores[n][e], factor, -query.lse)) * (products[n][e] - query.delta);
      }
  }

  const Params& p_;
  QueryMemory<S>& memory_;
  const QueryTile tile_;
  const int kv_;         // the head of its keys
  const int first_row_;  // of this warp
  const float scale_;    // to units of log 2
  Query query_[2];       // of the rows g and g + 8
  float dq_[S::kDim / 8][4];
};

template <bool kBfloat, int kDim>
__global__ void __launch_bounds__(kMmaThreads) write_dq(const Params p, const float* delta) {
  using S = Sizes<kDim>;
  QueryBlock<kBfloat, S>(p, delta, *dynamic_smem<QueryMemory<S>>()).run();
}

// ---- dk, dv, dbias ---------------------------------------------------------------------------------------

template <class S>
struct alignas(16) KeyMemory {
  Stationary<S> own;
  Moving<S> stage[2];
  Query query[2][S::kMoving];
  uint32_t bits[2][kTileRows][S::kMovingWords];
  int entries[kMmaThreads];
};

// kDk: writes dk and dbias. kDv: writes dv.
template <bool kBfloat, class S, bool kDk, bool kDv>
class KeyBlock {
 public:
  __device__ KeyBlock(const Params& p, const float* delta, KeyMemory<S>& memory)
      : p_(p),
        delta_(delta),
        memory_(memory),
        keys_(key_tile<kTileRows>(p.extent, p.plan, blockIdx.x, list_, block_)),
        first_row_(warp_of_block() * kWarpRows),
        scale_(static_cast<float>(p.scale * kLog2E)),
        sample_(static_cast<int>(list_ / static_cast<unsigned>(p.extent.kv_heads))),
        kv_(static_cast<int>(list_ % static_cast<unsigned>(p.extent.kv_heads))),
        head_(kv_ * static_cast<int>(p.extent.heads / p.extent.kv_heads)) {}

  __device__ __forceinline__ void run() {
    if (keys_.count <= 0) return;  // past the last key
    const int dim = p_.extent.head_dim;
    copy_tokens<S::kDim>(p_.k, p_.k.rows(sample_, kv_, keys_.first), keys_.count, kTileRows, dim,
                         memory_.own.first);
    if constexpr (kDk)
      copy_tokens<S::kDim>(p_.v, p_.v.rows(sample_, kv_, keys_.first), keys_.count, kTileRows, dim,
                           memory_.own.second);
    QueryWalk<S::kMoving, kMmaThreads> walk(p_.plan, p_.extent, list_, block_, memory_.entries, kBadPlan);
    bool more = walk.next();
    if (more) store_query(0, fetch(walk, 0));
    ptx::cp_async_commit();
    clear(dk_);
    clear(dv_);
    read_bias();
    for (int stage = 0; more; stage ^= 1) {
      const QueryTile queries = walk.tile();
      const bool partial = walk.bits() != nullptr;
      ptx::cp_async_wait<0>();
      __syncthreads();  // this stage is there, and nobody needs the other one
      more = walk.next();
      const Query query = more ? fetch(walk, stage ^ 1) : general::no_query<float>();
      ptx::cp_async_commit();
      if (first_row_ < keys_.count) {
        finish_heads(queries.head);
        if (queries.count == S::kMoving)
          work<true>(queries, partial, stage);
        else
          work<false>(queries, partial, stage);
      }
      if (more) store_query(stage ^ 1, query);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // keys that nobody sees have not been waited for
    if (first_row_ >= keys_.count) return;
    finish_heads(walk.end_of_heads());
    store(dim);
  }

 private:
  // Starts to copy a tile of queries and their dout; gives this thread's query.
  __device__ __forceinline__ Query fetch(const QueryWalk<S::kMoving, kMmaThreads>& walk, int stage) {
    const QueryTile& tile = walk.tile();
    const int rows = (tile.count + 15) / 16 * 16, dim = p_.extent.head_dim;
    const int b = tile.sample, h = tile.head;
    copy_tokens<S::kDim>(p_.q, p_.q.rows(b, h, tile.first), tile.count, rows, dim,
                         memory_.stage[stage].first);
    copy_tokens<S::kDim>(p_.dout, p_.dout.rows(b, h, tile.first), tile.count, rows, dim,
                         memory_.stage[stage].second);
    const int thread = static_cast<int>(threadIdx.x);
    if (walk.bits() != nullptr && thread < kTileRows * S::kMovingWords) {
      const int k = thread / S::kMovingWords, word = thread % S::kMovingWords;
      copy_word(p_.plan, walk.bits(), keys_.within + k, tile.within / 32 + word, k < keys_.count,
                &memory_.bits[stage][k][word]);
    }
    if (thread >= tile.count) return general::no_query<float>();
    return general::query_of(p_, delta_, b, h, tile.first + thread);
  }
  __device__ __forceinline__ void store_query(int stage, const Query& query) {
    if (threadIdx.x < S::kMoving) memory_.query[stage][threadIdx.x] = query;
  }

  template <bool kWhole>
  __device__ __forceinline__ void work(const QueryTile& queries, bool partial, int stage) {
    const Moving<S>& moving = memory_.stage[stage];
    float scores[S::kTiles][4], products[S::kTiles][4];
    multiply_columns<kBfloat, kWhole, S::kDim>(factors_of<S::kDim>(memory_.own.first, first_row_),
                                               moving.first, queries.count, scores);
    if constexpr (kDk)
      multiply_columns<kBfloat, kWhole, S::kDim>(factors_of<S::kDim>(memory_.own.second, first_row_),
                                                 moving.second, queries.count, products);
    const bool plain = !partial && p_.bias.data == nullptr;
    if (!plain) finish_scores(queries, partial, stage, scores);
    weigh(plain ? scale_ : 1.0f, stage, scores, products);
    if constexpr (kDv) accumulate_rows<kBfloat, kWhole, S::kDim>(scores, moving.second, queries.count, dv_);
    if constexpr (kDk) accumulate_rows<kBfloat, kWhole, S::kDim>(products, moving.first, queries.count, dk_);
  }

  // Products to scores in units of log 2, with the bias, -inf where nothing is seen.
  __device__ __forceinline__ void finish_scores(const QueryTile& queries, bool partial, int stage,
                                                float (&scores)[S::kTiles][4]) const {
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
    if (p_.bias.is_of_pairs()) {
      scale_and_add_bias(queries, scores);
    } else {
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[n][e] = fma_(scores[n][e], scale_, bias_[e / 2]);
    }
    if (!partial) return;
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t word = memory_.bits[stage][first_row_ + g + 8 * i][n / 4] >>
                              (queries.within % 32 + 8 * n % 32 + 2 * t);  // for queries from 8 n + 2 t on
        if ((word & 1u) == 0) scores[n][2 * i] = -INFINITY;
        if ((word & 2u) == 0) scores[n][2 * i + 1] = -INFINITY;
      }
  }

  // Straight from its tensor: a bias of pairs.
  __device__ __forceinline__ void scale_and_add_bias(const QueryTile& queries,
                                                     float (&scores)[S::kTiles][4]) const {
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = first_row_ + g + 8 * i;
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int q = 8 * n + 2 * t + e;
          const bool there = k < keys_.count && q < queries.count;
          const float bias = there ? bias_of<float>(p_.bias, element_of(p_.bias, sample_, queries.head,
                                                                        queries.first + q, keys_.first + k))
                                   : 0.0f;
          scores[n][2 * i + e] = fma_(scores[n][2 * i + e], scale_, bias);
        }
    }
  }

  // Scores, times `factor` in units of log 2, to p, and products to ds. Queries that there are not have an
  // infinite lse.
  __device__ __forceinline__ void weigh(float factor, int stage, float (&scores)[S::kTiles][4],
                                        float (&products)[S::kTiles][4]) {
    const int t = lane_of_warp() % 4;
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Query query = memory_.query[stage][8 * n + 2 * t + e];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& weight = scores[n][2 * i + e];
          weight = ptx::exp2_approx(fma_(weight, factor, -query.lse));
          if constexpr (kDk) {
            float& gradient = products[n][2 * i + e];
            gradient = weight * (gradient - query.delta);
            dbias_[i] += gradient;
          }
        }
      }
  }

  // Of this lane's keys, for the head at hand, if it is one of keys.
  __device__ __forceinline__ void read_bias() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = first_row_ + lane_of_warp() / 4 + 8 * i;
      bias_[i] = 0;
      if (p_.bias.is_of_keys() && k < keys_.count)
        bias_[i] = bias_of<float>(p_.bias, element_of(p_.bias, sample_, head_, 0, keys_.first + k));
    }
  }

  // Stores the sums of the heads before `head`, and goes there.
  __device__ __forceinline__ void finish_heads(int head) {
    if (head_ == head) return;
    for (; head_ < head; ++head_) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float total = quad_total(dbias_[i]);
        const int k = first_row_ + lane_of_warp() / 4 + 8 * i;
        dbias_[i] = 0;
        if (kDk && p_.dbias.data != nullptr && lane_of_warp() % 4 == 0 && k < keys_.count)
          store_as(p_.dbias.data, p_.dbias.dtype, p_.dbias.at(sample_, head_, keys_.first + k), total);
      }
    }
    if (head_ < (kv_ + 1) * (p_.extent.heads / p_.extent.kv_heads)) read_bias();
  }

  __device__ __forceinline__ void store(int dim) {
    const int count = min(keys_.count - first_row_, kWarpRows);
    const int first = keys_.first + first_row_;
    const auto scale = static_cast<float>(p_.scale);
    uint16_t* const rows = memory_.own.first + first_row_ * S::kDim;
    if constexpr (kDk)
      store_rows<kBfloat, S::kDim>(p_.dk, p_.dk.at(sample_, kv_, first), count, dim, dk_, {scale, scale},
                                   rows);
    if constexpr (kDv)
      store_rows<kBfloat, S::kDim>(p_.dv, p_.dv.at(sample_, kv_, first), count, dim, dv_, {1.0f, 1.0f}, rows);
  }

  unsigned list_ = 0;  // the head of keys, counted over all samples
  int block_ = 0;      // of keys
  const Params& p_;
  const float* const delta_;
  KeyMemory<S>& memory_;
  const KeyTile keys_;
  const int first_row_;  // of this warp
  const float scale_;    // to units of log 2
  const int sample_, kv_;
  int head_;                                    // whose dbias and bias these are
  float bias_[2] = {0, 0}, dbias_[2] = {0, 0};  // of the rows g and g + 8; dbias of this lane's columns
  float dk_[kDk ? S::kDim / 8 : 1][4], dv_[kDv ? S::kDim / 8 : 1][4];
};

template <bool kBfloat, int kDim, bool kDk, bool kDv>
__global__ void __launch_bounds__(kMmaThreads) write_dk_dv(const Params p, const float* delta) {
  using S = Sizes<kDim>;
  KeyBlock<kBfloat, S, kDk, kDv>(p, delta, *dynamic_smem<KeyMemory<S>>()).run();
}

// ---- launches --------------------------------------------------------------------------------------------

template <bool kBfloat, int kDim>
void launch_dim(const Params& p, const float* delta, cudaStream_t stream) {
  using S = Sizes<kDim>;
  static_assert(sizeof(QueryMemory<S>) <= kMostSmem && sizeof(KeyMemory<S>) <= kMostSmem);
  if (const int64_t tiles = query_tiles(p.extent, p.plan, kTileRows); tiles > 0)
    launch(&write_dq<kBfloat, kDim>, dim3(blocks_for(tiles, 1)), dim3(kMmaThreads), sizeof(QueryMemory<S>),
           stream, p, delta);
  const int64_t tiles = key_tiles(p.extent, p.plan, kTileRows);
  if (tiles == 0) return;
  const auto on_keys = [&](auto kernel) {
    launch(kernel, dim3(blocks_for(tiles, 1)), dim3(kMmaThreads), sizeof(KeyMemory<S>), stream, p, delta);
  };
  if constexpr (S::kBothAtOnce) {
    on_keys(&write_dk_dv<kBfloat, kDim, true, true>);
  } else {
    on_keys(&write_dk_dv<kBfloat, kDim, true, false>);
    on_keys(&write_dk_dv<kBfloat, kDim, false, true>);
  }
}

// Whether all can be read in chunks.
inline bool fits(const Params& p) {
  const Extent& e = p.extent;
  return has_chunks(p.q, e.samples, e.heads) && has_chunks(p.dout, e.samples, e.heads) &&
         has_chunks(p.k, e.samples, e.kv_heads) && has_chunks(p.v, e.samples, e.kv_heads);
}

inline void launch_mma(const Params& p, const float* delta, cudaStream_t stream) {
  with_wide_dim(p.extent.head_dim, [&](auto dim) {
    if (p.q.dtype == DType::bf16) return launch_dim<true, dim()>(p, delta, stream);
    launch_dim<false, dim()>(p, delta, stream);
  });
}

}  // namespace mma
}  // namespace
}  // namespace fastdiff::block_sparse_attention_backward
