// SPDX-License-Identifier: Apache-2.0
// attention_map_energy_gradient on CUDA: the rows' sums; then, with a tile of queries, the energy of each
// row, its mean and dq; then, with a tile of keys, dk. Each forms the weights anew. Each sum is one chain or
// tree in a fixed order, with no atomics.
#include "attention/attention_map_energy_gradient/attention_map_energy_gradient_math.h"
#include "attention/maps.cuh"

namespace fastdiff::attention_map_energy_gradient {
namespace {

using namespace attention;

template <class G>
__device__ __forceinline__ void clear(typename G::Sums& sums) {
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
#pragma unroll
    for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
      for (int e = 0; e < G::kPack; ++e) sums[i][g][e] = 0;
}

// ---- energy, mean, dq ------------------------------------------------------------------------------------

template <class G>
struct QuerySmem {
  using T = typename G::Real;
  T queries[2][G::kRowTile];  // [kHeight][kDim]
  T keys[2][G::kColumnTile];  // [kWidth][kDim]
  T weights[G::kWeightTile];  // A D and then A, [kHeight][kWidth]
};

template <class G>
__global__ void __launch_bounds__(G::kThreads) write_dq(const Params p, MapScratch<typename G::Real> known) {
  using T = typename G::Real;
  QuerySmem<G>& smem = *dynamic_smem<QuerySmem<G>>();
  const MapTile tile = map_tile<G::kHeight>(p, p.extent.queries, blockIdx.x);
  const int dim = p.extent.head_dim, all_keys = static_cast<int>(p.extent.keys);
  MapRow<T> row[2][G::kRows];
#pragma unroll
  for (int map = 0; map < 2; ++map) {
    load_tile<G, G::kHeight>(p, p.q[map], tile, smem.queries[map]);
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
      row[map][i] = G::row(i) < tile.count ? known.rows[map][map_row(p, tile, G::row(i))] : no_row<T>();
  }
  T energy[G::kRows], mean[G::kRows];
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) energy[i] = mean[i] = T(0);
  typename G::Sums changes, averages;  // sums of A D k, and of A k
  clear<G>(changes);
  clear<G>(averages);
  for (int first = 0; first < all_keys; first += G::kWidth) {
    const MapTile key{tile.b, tile.h, first, min(G::kWidth, all_keys - first)};
#pragma unroll
    for (int map = 0; map < 2; ++map) load_tile<G, G::kWidth>(p, p.k[map], key, smem.keys[map]);
    __syncthreads();
    typename G::Scores weights, reference;
    multiply<G>(smem.queries[0], smem.keys[0], dim, weights);
    multiply<G>(smem.queries[1], smem.keys[1], dim, reference);
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) {
        Pair<T> pair{T(0), T(0)};
        if (G::row(i) < tile.count && G::column(j) < key.count)
          pair = pair_of(weight_of(p, row[0][i], weights[i][j]), weight_of(p, row[1][i], reference[i][j]));
        energy[i] = add_energy(energy[i], pair);
        mean[i] = add_mean(mean[i], pair);
        weights[i][j] = pair.weight;
        reference[i][j] = pair.weight * pair.difference;
      }
    store_weights<G>(reference, smem.weights);
    __syncwarp();
    accumulate<G>(smem.weights, smem.keys[0], key.count, dim, changes);
    __syncwarp();  // A D has been read
    store_weights<G>(weights, smem.weights);
    __syncwarp();
    accumulate<G>(smem.weights, smem.keys[0], key.count, dim, averages);
    __syncthreads();  // all have read the keys
  }
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    energy[i] = row_total(energy[i]);
    mean[i] = row_total(mean[i]);
#pragma unroll
    for (int g = 0; g < G::kGroups; ++g)
#pragma unroll
      for (int e = 0; e < G::kPack; ++e)
        changes[i][g][e] = fma_(-mean[i], averages[i][g][e], changes[i][g][e]);
    if (G::x() != 0 || G::row(i) >= tile.count) continue;
    const int64_t at = map_row(p, tile, G::row(i));
    known.energy[at] = static_cast<double>(energy[i]);
    known.mean[at] = mean[i];
  }
  store_sums<G>(p.dq, p.dq.at(tile.b, tile.h, tile.first), tile.count, dim, changes,
                [&p](int) { return static_cast<T>(p.gradient_factor()); });
}

// ---- dk --------------------------------------------------------------------------------------------------

template <class G>
struct KeySmem {
  using T = typename G::Real;
  T keys[2][G::kRowTile];        // [kHeight][kDim]
  T queries[2][G::kColumnTile];  // [kWidth][kDim]
  T weights[G::kWeightTile];     // ds, [kHeight][kWidth]
  MapRow<T> rows[2][G::kWidth];
  T mean[G::kWidth];
};

template <class G>
__global__ void __launch_bounds__(G::kThreads) write_dk(const Params p, MapScratch<typename G::Real> known) {
  using T = typename G::Real;
  KeySmem<G>& smem = *dynamic_smem<KeySmem<G>>();
  const MapTile key = map_tile<G::kHeight>(p, p.extent.keys, blockIdx.x);
  const int dim = p.extent.head_dim, all_queries = static_cast<int>(p.extent.queries);
#pragma unroll
  for (int map = 0; map < 2; ++map) load_tile<G, G::kHeight>(p, p.k[map], key, smem.keys[map]);
  typename G::Sums sums;
  clear<G>(sums);
  for (int first = 0; first < all_queries; first += G::kWidth) {
    const MapTile tile{key.b, key.h, first, min(G::kWidth, all_queries - first)};
#pragma unroll
    for (int map = 0; map < 2; ++map) load_tile<G, G::kWidth>(p, p.q[map], tile, smem.queries[map]);
    if (const int n = static_cast<int>(threadIdx.x); n < tile.count) {
      const int64_t at = map_row(p, tile, n);
      for (int map = 0; map < 2; ++map) smem.rows[map][n] = known.rows[map][at];
      smem.mean[n] = known.mean[at];
    }
    __syncthreads();
    typename G::Scores weights, reference;
    multiply<G>(smem.keys[0], smem.queries[0], dim, weights);
    multiply<G>(smem.keys[1], smem.queries[1], dim, reference);
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) {
        const int k = G::row(i), q = G::column(j);
        weights[i][j] = k < key.count && q < tile.count
                            ? score_gradient(pair_of(weight_of(p, smem.rows[0][q], weights[i][j]),
                                                     weight_of(p, smem.rows[1][q], reference[i][j])),
                                             smem.mean[q])
                            : T(0);
      }
    store_weights<G>(weights, smem.weights);
    __syncwarp();
    accumulate<G>(smem.weights, smem.queries[0], tile.count, dim, sums);
    __syncthreads();  // all have read the queries
  }
  store_sums<G>(p.dk, p.dk.at(key.b, key.h, key.first), key.count, dim, sums,
                [&p](int) { return static_cast<T>(p.gradient_factor()); });
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  with_tiling(params, [&](auto tiling) {
    using G = decltype(tiling);
    static_assert(sizeof(QuerySmem<G>) <= kMostSmem && sizeof(KeySmem<G>) <= kMostSmem);
    const MapScratch<typename G::Real> known(params, scratch);
    if (params.extent.heads * params.extent.queries > 0) {
      launch_rows<G>(params, known, on);
      launch(&write_dq<G>, dim3(map_tiles<G::kHeight>(params, params.extent.queries)), dim3(G::kThreads),
             sizeof(QuerySmem<G>), on, params, known);
    }
    if (params.extent.heads * params.extent.keys > 0)
      launch(&write_dk<G>, dim3(map_tiles<G::kHeight>(params, params.extent.keys)), dim3(G::kThreads),
             sizeof(KeySmem<G>), on, params, known);
    launch_energies(params, known.energy, on);
  });
}

}  // namespace fastdiff::attention_map_energy_gradient
