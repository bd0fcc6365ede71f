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

inline constexpr int kMostDimOfSets = 128;

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
  float highest[2];  // in units of log 2
  float total[2];    // of this lane's columns
  float sums[S::kDim / 8][4];

  __device__ __forceinline__ void begin() {
    highest[0] = highest[1] = kLowest<float>;
    total[0] = total[1] = 0;
    clear(sums);
  }

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
        split_(static_cast<int>(blockIdx.y)),
        kv_(tile_.head / static_cast<int>(p.extent.heads / p.extent.kv_heads)),
        first_row_(warp_of_block() * kWarpRows),
        scale_(static_cast<float>(p.scale * kLog2E)) {}

  __device__ void run() {
    if (tile_.count <= 0) return;  // past the last query
    Walk<S::kKeys> walk(p_.plan, entries_of(p_, tile_, split_), kBadPlan);
    uint16_t* const queries = memory_.queries_at_first();
    copy_tokens<S::kDim>(p_.q, p_.q.rows(tile_.sample, tile_.head, tile_.first), tile_.count, S::kQueries,
                         p_.extent.head_dim, queries);
    ptx::cp_async_commit();
    for (int set = 0; set < p_.plan.sets; ++set) {
      if (set > 0) walk.next_set();
      const bool some = walk.next();
      if (set > 0) __syncthreads();  // nobody reads the last stages of the set before
      if (some) store_bias(p_.bias, fetch(walk.tile(), 0), memory_.extras[0]);
      ptx::cp_async_commit();
      if (set == 0) {
        ptx::cp_async_wait<1>();
        keep_queries(queries);
      }
      running_.begin();
      attend(walk, some);
      finish(set + split_);
      if (p_.plan.sets > 1) hand_over(set);
    }
    __syncthreads();  // the results go where keys were
    store();
  }

 private:
  __device__ __forceinline__ void attend(Walk<S::kKeys>& walk, bool more) {
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
  }

  // They have arrived for this thread.
  __device__ __forceinline__ void keep_queries(uint16_t* queries) {
    if (p_.q_end.data != nullptr) mix_queries(queries);
    __syncthreads();  // and for all
    if constexpr (S::kKeepsQueries) {
#pragma unroll
      for (int k = 0; k < S::kDim / 16; ++k)
        ptx::ldmatrix_x4(queries_[k], rows_at<S::kDim>(queries, first_row_, k));
    }
  }

  // Each thread has the chunks that it has copied itself. Rounded, as torch.lerp does.
  __device__ __forceinline__ void mix_queries(uint16_t* queries) const {
    constexpr int kChunks = S::kDim / 8;
    const Rows rows = p_.q_end.rows(tile_.sample, tile_.head, tile_.first);
    const auto* const end = static_cast<const uint16_t*>(p_.q_end.data);
    const auto mix = static_cast<float>(p_.mix);
    for (int n = static_cast<int>(threadIdx.x); n < S::kQueries * kChunks; n += kMmaThreads) {
      const int r = n / kChunks, c = n % kChunks;
      if (r >= tile_.count || 8 * c >= p_.extent.head_dim) continue;
      uint16_t* const own = queries + chunk_at<S::kDim>(r, c);
      const int64_t from = place_of(p_.q_end, rows, r) + 8 * c;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = load_as<float>(own, p_.q.dtype, e);
        store_as<float>(own, p_.q.dtype, e, fma_(mix, load_as<float>(end, p_.q.dtype, from + e) - x, x));
      }
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

  // What a set of keys, or a split, has given: its lse; its sums times what makes them a part of out.
  __device__ __forceinline__ void finish(int part) {
    const int count = tile_.count - first_row_;
    if (count <= 0) return;
    float factors[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = quad_total(running_.total[i]);
      const int row = lane_of_warp() / 4 + 8 * i, query = tile_.first + first_row_ + row;
      factors[i] = total == 0 ? 0.0f : 1.0f / total;
      if (row >= count) continue;
      if (p_.weights.data != nullptr)
        factors[i] *=
            load_as<float>(p_.weights.data, p_.weights.dtype,
                           p_.weights.at(tile_.sample, tile_.head, query) + part * p_.weights_of_set);
      if (lane_of_warp() % 4 != 0) continue;
      const float lse =
          total == 0 ? -INFINITY : fma_(running_.highest[i], static_cast<float>(kLn2), logf(total));
      store_as<float>(p_.lse.data, p_.lse.dtype,
                      p_.lse.at(tile_.sample, tile_.head, query) + part * p_.lse_of_part, lse);
    }
#pragma unroll
    for (int c = 0; c < S::kDim / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) running_.sums[c][e] *= factors[e / 2];
  }

  // The sums of all sets so far are in shared memory, each thread's its own; those of all at last in
  // registers.
  __device__ __forceinline__ void hand_over(int set) {
    float* const others = reinterpret_cast<float*>(&memory_ + 1) + threadIdx.x;
#pragma unroll
    for (int c = 0; c < S::kDim / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& here = others[(4 * c + e) * kMmaThreads];
        if (set > 0) running_.sums[c][e] += here;
        here = running_.sums[c][e];
      }
  }

  __device__ __forceinline__ void store() {
    const int count = min(tile_.count - first_row_, kWarpRows);
    if (count <= 0) return;
    const int64_t at =
        p_.out.at(tile_.sample, tile_.head, tile_.first + first_row_) + split_ * p_.out_of_split;
    if (p_.splits > 1) return store_floats(static_cast<float*>(p_.out.data) + at, count);
    uint16_t* const rows = reinterpret_cast<uint16_t*>(&memory_) + first_row_ * S::kDim;
    store_rows<kBfloat, S::kDim>(p_.out, at, count, p_.extent.head_dim, running_.sums, {1.0f, 1.0f}, rows);
  }

  // A split's.
  __device__ __forceinline__ void store_floats(float* out, int count) const {
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4, dim = p_.extent.head_dim;
#pragma unroll
    for (int c = 0; c < S::kDim / 8; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (g + 8 * i < count && 8 * c < dim)
          *reinterpret_cast<float2*>(out + (g + 8 * i) * p_.out.row + 8 * c + 2 * t) =
              float2{running_.sums[c][2 * i], running_.sums[c][2 * i + 1]};
  }

  const Params& p_;
  Memory<S>& memory_;
  const QueryTile tile_;
  const int split_;
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

// With what hand_over needs.
template <int kDim>
constexpr size_t smem_bytes(bool sets) {
  return sizeof(Memory<Sizes<kDim>>) + (sets ? kTileRows * kDim * sizeof(float) : 0);
}

template <bool kBfloat, int kDim>
void launch_dim(const Params& p, cudaStream_t stream) {
  static_assert(smem_bytes<kDim>(kDim <= kMostDimOfSets) <= kMostSmem);
  const unsigned blocks = blocks_for(query_tiles(p.extent, p.plan, kTileRows), 1);
  launch(&attend<kBfloat, kDim>, dim3(blocks, p.splits), dim3(kMmaThreads), smem_bytes<kDim>(p.plan.sets > 1),
         stream, p);
}

template <bool kBfloat>
void launch_type(const Params& p, cudaStream_t stream) {
  with_wide_dim(p.extent.head_dim, [&](auto dim) { launch_dim<kBfloat, dim()>(p, stream); });
}

// Whether all can be read in chunks, and the sums of several sets have room.
inline bool fits(const Params& p) {
  const Extent& e = p.extent;
  if (p.plan.sets > 1 && e.head_dim > kMostDimOfSets) return false;
  if (p.q_end.data != nullptr && !has_chunks(p.q_end, e.samples, e.heads)) return false;
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
