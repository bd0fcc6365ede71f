// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward on CUDA without tensor cores: float and double arithmetic, any dtype,
// strides, alignment.
//
// Two kernels, each of which forms the probabilities anew. One has a tile of queries and takes the keys that
// they see through shared memory: dq. The other has a tile of keys and takes the queries that see them, of
// all heads that read these keys: dk, dv and dbias. Which rows of blocks have its block it finds by
// bisection, many rows at a time.
#pragma once

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_math.h"
#include "attention/tiles.cuh"

namespace fastdiff::block_sparse_attention_backward {
namespace {

inline constexpr const char* kBadPlan =
    "fastdiff::block_sparse_attention_backward: offsets, columns and masks must be those of a plan for this "
    "call";

namespace general {

using namespace attention;

// ---- delta -----------------------------------------------------------------------------------------------

inline constexpr int kDeltaWarps = 8;

// delta[B, H, N_q]: a warp takes a query.
template <class T>
__global__ void __launch_bounds__(32 * kDeltaWarps) fill_delta(const Params p, T* delta) {
  const int64_t n = int64_t{blockIdx.x} * kDeltaWarps + threadIdx.x / 32;
  if (n >= p.extent.samples * p.extent.heads * p.extent.queries) return;
  const int64_t q = n % p.extent.queries, list = n / p.extent.queries;
  const int64_t b = list / p.extent.heads, h = list % p.extent.heads;
  const int64_t dout = p.dout.at(b, h, q), out = p.out.at(b, h, q);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T sum = 0;
  for (int d = lane; d < p.extent.head_dim; d += 32)
    sum = fma_(load_as<T>(p.dout.data, p.dout.dtype, dout + d * p.dout.element),
               load_as<T>(p.out.data, p.out.dtype, out + d * p.out.element), sum);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum = sum + __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (lane != 0) return;
  if (p.dlse.data != nullptr) sum = sum - load_as<T>(p.dlse.data, p.dlse.dtype, p.dlse.at(b, h, q));
  delta[n] = sum;
}

template <class T>
void launch_delta(const Params& p, T* delta, cudaStream_t stream) {
  const int64_t queries = p.extent.samples * p.extent.heads * p.extent.queries;
  if (queries == 0) return;
  launch(&fill_delta<T>, dim3(blocks_for(queries, kDeltaWarps)), dim3(32 * kDeltaWarps), 0, stream, p, delta);
}

// What a query brings besides its tokens: its lse in units of log 2, +inf where nothing is seen, so that its
// probabilities are 0; and its delta.
template <class T>
struct Query {
  T lse, delta;
};
template <class T>
__device__ __forceinline__ Query<T> query_of(const Params& p, const T* delta, int64_t b, int64_t h,
                                             int64_t q) {
  const T lse = load_as<T>(p.lse.data, p.lse.dtype, p.lse.at(b, h, q));
  return {lse == -static_cast<T>(INFINITY) ? static_cast<T>(INFINITY) : in_log2(lse),
          delta[(b * p.extent.heads + h) * p.extent.queries + q]};
}
// Of a query that there is not.
template <class T>
__device__ __forceinline__ Query<T> no_query() {
  return {static_cast<T>(INFINITY), T(0)};
}

// ---- what both kernels do with a pair of tokens ----------------------------------------------------------

template <class T>
struct Pair {
  T weight, gradient;  // p and ds
};

// The q-th and k-th of two tiles; `score` is q . k, `product` dout . v.
template <class T>
__device__ __forceinline__ Pair<T> pair_of(const Params& p, const QueryTile& queries, const KeyTile& keys,
                                           int q, int k, const Query<T>& query, T score, T product) {
  const T s = finish_score(p.plan, p.bias, queries, keys, q, k, score * static_cast<T>(p.scale * kLog2E));
  const T weight = power_of_two(s - query.lse);
  return {weight, weight * (product - query.delta)};
}

template <class G>
__device__ __forceinline__ void clear(typename G::Sums& sums) {
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
      for (int e = 0; e < G::kPack; ++e) sums[i][g][e] = 0;
}

// ---- dq --------------------------------------------------------------------------------------------------

template <class G>
constexpr size_t dq_smem_bytes() {
  return (2 * G::kRowTile + 2 * G::kColumnTile + G::kWeightTile) * sizeof(typename G::Real);
}

// A tile of queries, and ds with each tile of keys that it sees.
template <class G>
class QueryBlock {
  using T = typename G::Real;

 public:
  __device__ QueryBlock(const Params& p, const T* delta, const QueryTile& tile)
      : p_(p), tile_(tile), kv_(tile.head / (p.extent.heads / p.extent.kv_heads)) {
    const int64_t b = tile.sample, h = tile.head;
    const int dim = p.extent.head_dim;
    load_tokens<G, G::kHeight>(p.q, p.q.rows(b, h, tile.first), tile.count, dim, T(1), queries());
    load_tokens<G, G::kHeight>(p.dout, p.dout.rows(b, h, tile.first), tile.count, dim, T(1), douts());
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
      query_[i] = G::row(i) < tile.count ? query_of(p, delta, b, h, tile.first + G::row(i)) : no_query<T>();
  }

  // body(keys), with ds in weights() for the half of a warp that has the same rows.
  template <class Body>
  __device__ __forceinline__ void each_tile(const Body& body) {
    Walk<G::kWidth> walk(p_.plan, entries_of(p_.plan, tile_.sample, tile_.head, tile_.row, kBadPlan),
                         kBadPlan);
    while (walk.next()) {
      write_ds(walk.tile());
      __syncwarp();
      body(walk.tile());
      __syncthreads();  // all have read the keys
    }
  }

  __device__ T* queries() const { return dynamic_smem<T>(); }          // [kHeight][kDim]
  __device__ T* douts() const { return queries() + G::kRowTile; }      // the same
  __device__ T* keys() const { return douts() + G::kRowTile; }         // [kWidth][kDim]
  __device__ T* values() const { return keys() + G::kColumnTile; }     // the same
  __device__ T* weights() const { return values() + G::kColumnTile; }  // ds [kHeight][kWidth]

 private:
  __device__ __forceinline__ void write_ds(const KeyTile& key) const {
    const int64_t b = tile_.sample;
    const int dim = p_.extent.head_dim;
    load_tokens<G, G::kWidth>(p_.k, p_.k.rows(b, kv_, key.first), key.count, dim, T(1), keys());
    load_tokens<G, G::kWidth>(p_.v, p_.v.rows(b, kv_, key.first), key.count, dim, T(1), values());
    __syncthreads();
    typename G::Scores scores, products;
    multiply<G>(queries(), keys(), dim, scores);
    multiply<G>(douts(), values(), dim, products);
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) {
        const int q = G::row(i), k = G::column(j);
        const bool there = q < tile_.count && k < key.count;
        scores[i][j] =
            there ? pair_of(p_, tile_, key, q, k, query_[i], scores[i][j], products[i][j]).gradient : T(0);
      }
    store_weights<G>(scores, weights());
  }

  const Params& p_;
  const QueryTile tile_;
  const int64_t kv_;
  Query<T> query_[G::kRows];
};

template <class G>
__global__ void __launch_bounds__(G::kThreads) write_dq(const Params p, const typename G::Real* delta) {
  using T = typename G::Real;
  const QueryTile tile = query_tile<G::kHeight>(p.extent, p.plan, blockIdx.x);
  if (tile.count <= 0) return;  // past the last query
  QueryBlock<G> block(p, delta, tile);
  typename G::Sums sums;
  clear<G>(sums);
  block.each_tile([&](const KeyTile& keys) {
    accumulate<G>(block.weights(), block.keys(), keys.count, p.extent.head_dim, sums);
  });
  store_sums<G>(p.dq, p.dq.at(tile.sample, tile.head, tile.first), tile.count, p.extent.head_dim, sums,
                [&p](int) { return static_cast<T>(p.scale); });
}

// ---- the gradient of a table -----------------------------------------------------------------------------
//
// A block of threads takes a head, query tile after query tile. Each warp adds its rows of ds to a table of
// its own; a lane has every 32nd entry, looks at all pairs, and adds those with its entries: no two add to
// the same place, and all in one order.

template <class G>
__global__ void __launch_bounds__(G::kThreads)
    fill_tables(const Params p, const typename G::Real* delta, typename G::Real* tables) {
  using T = typename G::Real;
  constexpr int kWarps = G::kThreads / 32, kRowsOfWarp = G::kHeight / kWarps;
  static_assert(kWarps <= kTablesOfHead);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  T* const table = tables + (int64_t{blockIdx.x} * kWarps + warp) * p.bias.entries;
  for (int64_t n = lane; n < p.bias.entries; n += 32) table[n] = 0;
  const unsigned tiles = tiles_of(p.plan.block_q, G::kHeight) * p.plan.rows;
  for (unsigned n = 0; n < tiles; ++n) {
    const QueryTile tile = query_tile<G::kHeight>(p.extent, p.plan, blockIdx.x * tiles + n);
    if (tile.count <= 0) continue;
    __syncthreads();  // the tile before has been read
    QueryBlock<G> block(p, delta, tile);
    block.each_tile([&](const KeyTile& keys) {
      for (int r = warp * kRowsOfWarp; r < min((warp + 1) * kRowsOfWarp, tile.count); ++r) {
        const int64_t code = p.bias.q_code.of(tile.sample, tile.first + r);
        for (int k = 0; k < keys.count; ++k) {
          const int64_t entry = code - p.bias.k_code.of(tile.sample, keys.first + k);
          if (entry % 32 == lane && entry >= 0 && entry < p.bias.entries)
            table[entry] = table[entry] + block.weights()[r * G::kWeightPitch + k];
        }
      }
    });
  }
}

template <class T>
__global__ void __launch_bounds__(256) add_tables(const Params p, const T* tables, int warps) {
  const int64_t n = int64_t{blockIdx.x} * 256 + threadIdx.x, entries = p.bias.entries;
  if (n >= p.extent.samples * p.extent.heads * entries) return;
  const int64_t head = n / entries, entry = n % entries;
  T sum = 0;
  for (int w = 0; w < warps; ++w) sum = sum + tables[(head * warps + w) * entries + entry];
  store_as(p.dtable.data, p.dtable.dtype, p.dtable.at(head / p.extent.heads, head % p.extent.heads, entry),
           sum);
}

// `tables`: [B H][kTablesOfHead][T].
template <class G>
void launch_tables(const Params& p, const typename G::Real* delta, typename G::Real* tables,
                   cudaStream_t stream) {
  using T = typename G::Real;
  const int64_t heads = p.extent.samples * p.extent.heads;
  launch(&fill_tables<G>, dim3(blocks_for(heads, 1)), dim3(G::kThreads), dq_smem_bytes<G>(), stream, p, delta,
         tables);
  launch(&add_tables<T>, dim3(blocks_for(heads * p.bias.entries, 256)), dim3(256), 0, stream, p,
         static_cast<const T*>(tables), G::kThreads / 32);
}

// ---- dk, dv, dbias ---------------------------------------------------------------------------------------

template <class G>
struct KeySmem {
  using T = typename G::Real;
  T keys[G::kRowTile], values[G::kRowTile];          // [kHeight][kDim]
  T queries[G::kColumnTile], douts[G::kColumnTile];  // [kWidth][kDim]
  T weights[G::kWeightTile];                         // p and then ds, [kHeight][kWidth]
  Query<T> query[G::kWidth];
  int entries[G::kThreads];
};

template <class G>
struct KeySums {
  typename G::Sums dk, dv;
  typename G::Real dbias[G::kRows];
};

// Adds what a tile of queries gives to a tile of keys.
template <class G>
__device__ __forceinline__ void add_queries(const Params& p, const typename G::Real* delta,
                                            const KeyTile& keys, const QueryTile& tile, KeySmem<G>& smem,
                                            KeySums<G>& sums) {
  using T = typename G::Real;
  const int dim = p.extent.head_dim;
  const int64_t b = tile.sample, h = tile.head;
  load_tokens<G, G::kWidth>(p.q, p.q.rows(b, h, tile.first), tile.count, dim, T(1), smem.queries);
  load_tokens<G, G::kWidth>(p.dout, p.dout.rows(b, h, tile.first), tile.count, dim, T(1), smem.douts);
  if (const int n = static_cast<int>(threadIdx.x); n < G::kWidth)
    smem.query[n] = n < tile.count ? query_of(p, delta, b, h, tile.first + n) : no_query<T>();
  __syncthreads();
  typename G::Scores scores, products;
  multiply<G>(smem.keys, smem.queries, dim, scores);
  multiply<G>(smem.values, smem.douts, dim, products);
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int j = 0; j < G::kColumns; ++j) {
      const int k = G::row(i), q = G::column(j);
      Pair<T> pair{T(0), T(0)};
      if (k < keys.count && q < tile.count)
        pair = pair_of(p, tile, keys, q, k, smem.query[q], scores[i][j], products[i][j]);
      scores[i][j] = pair.weight;
      products[i][j] = pair.gradient;
      sums.dbias[i] = sums.dbias[i] + pair.gradient;
    }
  store_weights<G>(scores, smem.weights);
  __syncwarp();
  accumulate<G>(smem.weights, smem.douts, tile.count, dim, sums.dv);
  __syncwarp();  // p has been read
  store_weights<G>(products, smem.weights);
  __syncwarp();
  accumulate<G>(smem.weights, smem.queries, tile.count, dim, sums.dk);
  __syncthreads();  // all have read the queries
}

template <class G>
__device__ __forceinline__ void store_dbias(const Params& p, const KeyTile& keys, int64_t b, int64_t h,
                                            typename G::Real (&dbias)[G::kRows]) {
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    const typename G::Real total = row_total(dbias[i]);
    dbias[i] = 0;
    if (p.dbias.data != nullptr && G::x() == 0 && G::row(i) < keys.count)
      store_as(p.dbias.data, p.dbias.dtype, p.dbias.at(b, h, keys.first + G::row(i)), total);
  }
}

template <class G>
__global__ void __launch_bounds__(G::kThreads) write_dk_dv(const Params p, const typename G::Real* delta) {
  using T = typename G::Real;
  KeySmem<G>& smem = *dynamic_smem<KeySmem<G>>();
  unsigned list = 0;
  int block = 0;
  KeyTile keys = key_tile<G::kHeight>(p.extent, p.plan, blockIdx.x, list, block);
  if (keys.count <= 0) return;  // past the last key
  const int64_t b = list / p.extent.kv_heads, kv = list % p.extent.kv_heads;
  const int dim = p.extent.head_dim;
  load_tokens<G, G::kHeight>(p.k, p.k.rows(b, kv, keys.first), keys.count, dim, T(1), smem.keys);
  load_tokens<G, G::kHeight>(p.v, p.v.rows(b, kv, keys.first), keys.count, dim, T(1), smem.values);
  KeySums<G> sums;
  clear<G>(sums.dk);
  clear<G>(sums.dv);
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) sums.dbias[i] = 0;
  QueryWalk<G::kWidth, G::kThreads> walk(p.plan, p.extent, list, block, smem.entries, kBadPlan);
  int64_t head = kv * (p.extent.heads / p.extent.kv_heads);
  while (walk.next()) {
    for (; head < walk.tile().head; ++head) store_dbias<G>(p, keys, b, head, sums.dbias);
    keys.bits = walk.bits();
    add_queries<G>(p, delta, keys, walk.tile(), smem, sums);
  }
  for (; head < walk.end_of_heads(); ++head) store_dbias<G>(p, keys, b, head, sums.dbias);
  store_sums<G>(p.dk, p.dk.at(b, kv, keys.first), keys.count, dim, sums.dk,
                [&p](int) { return static_cast<T>(p.scale); });
  store_sums<G>(p.dv, p.dv.at(b, kv, keys.first), keys.count, dim, sums.dv, [](int) { return T(1); });
}

// ---- launches --------------------------------------------------------------------------------------------

// body(tiling) with the smallest that holds a head_dim.
template <class Body>
void with_tiling(const Params& p, const Body& body) {
  const int dim = p.extent.head_dim;
  if (p.wide()) {
    if (dim <= 64) return body(Tiling<double, 64, 1, 1>{});
    if (dim <= 128) return body(Tiling<double, 128, 1, 1>{});
    return body(Tiling<double, 256, 1, 1, 8>{});
  }
  if (dim <= 64) return body(Tiling<float, 64, 2, 2>{});
  if (dim <= 128) return body(Tiling<float, 128, 2, 2>{});
  body(Tiling<float, 256, 1, 1>{});
}

template <class G>
void launch_tiling(const Params& p, const typename G::Real* delta, cudaStream_t stream) {
  static_assert(dq_smem_bytes<G>() <= kMostSmem && sizeof(KeySmem<G>) <= kMostSmem);
  if (const int64_t tiles = query_tiles(p.extent, p.plan, G::kHeight); tiles > 0)
    launch(&write_dq<G>, dim3(blocks_for(tiles, 1)), dim3(G::kThreads), dq_smem_bytes<G>(), stream, p, delta);
  if (const int64_t tiles = key_tiles(p.extent, p.plan, G::kHeight); tiles > 0)
    launch(&write_dk_dv<G>, dim3(blocks_for(tiles, 1)), dim3(G::kThreads), sizeof(KeySmem<G>), stream, p,
           delta);
}

}  // namespace general
}  // namespace
}  // namespace fastdiff::block_sparse_attention_backward
