// SPDX-License-Identifier: Apache-2.0
// Two maps on CUDA, in ordinary arithmetic: any dtype, strides, alignment. A block of threads has a tile of
// one kind of tokens and takes those of the other kind in tiles through shared memory.
#pragma once

#include "attention/maps.h"
#include "attention/tiles.cuh"
#include "core/reduce.cuh"

namespace fastdiff::attention {
namespace {

// Some tokens of a head.
struct MapTile {
  int64_t b, h;
  int first, count;
};

template <int kTokens>
unsigned map_tiles(const Maps& m, int64_t tokens) {
  const int64_t tiles = (tokens + kTokens - 1) / kTokens;
  return blocks_for(m.extent.samples * m.extent.heads * tiles, 1);
}

template <int kTokens>
__device__ __forceinline__ MapTile map_tile(const Maps& m, int64_t tokens, unsigned index) {
  const auto all = static_cast<int>(tokens);
  const unsigned tiles = tiles_of(all, kTokens), head = index / tiles;
  const auto heads = static_cast<unsigned>(m.extent.heads);
  const int first = static_cast<int>(index % tiles) * kTokens;
  return {head / heads, head % heads, first, min(kTokens, all - first)};
}

// A tile in shared memory of queries or keys, of the map or of its reference.
template <class G, int kTokens>
__device__ __forceinline__ void load_tile(const Maps& m, const Heads& t, const MapTile& tile,
                                          typename G::Real* to) {
  load_tokens<G, kTokens>(t, t.rows(tile.b, tile.h, tile.first), tile.count, m.extent.head_dim,
                          typename G::Real(1), to);
}

// Where what is known of a query is kept.
__device__ __forceinline__ int64_t map_row(const Maps& m, const MapTile& tile, int q) {
  return (tile.b * m.extent.heads + tile.h) * m.extent.queries + tile.first + q;
}

// Of a query that there is not.
template <class T>
__device__ __forceinline__ MapRow<T> no_row() {
  return {T(0), T(0)};
}

// The element of a map for a product q . k.
template <class T>
__device__ __forceinline__ T weight_of(const Maps& m, const MapRow<T>& row, T product) {
  return power_of_two(product * static_cast<T>(m.scale * kLog2E) - row.highest) * row.part;
}

// ---- the rows' sums --------------------------------------------------------------------------------------

// A block of threads takes the rows of one of the two maps.
template <class G>
__global__ void __launch_bounds__(G::kThreads)
    measure_rows(const Maps m, MapScratch<typename G::Real> known) {
  using T = typename G::Real;
  T* const queries = dynamic_smem<T>();   // [kHeight][kDim]
  T* const keys = queries + G::kRowTile;  // [kWidth][kDim]
  const int map = static_cast<int>(blockIdx.y);
  const MapTile tile = map_tile<G::kHeight>(m, m.extent.queries, blockIdx.x);
  load_tile<G, G::kHeight>(m, m.q[map], tile, queries);
  T highest[G::kRows], total[G::kRows];
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) highest[i] = kLowest<T>, total[i] = T(0);
  const int all_keys = static_cast<int>(m.extent.keys);
  for (int first = 0; first < all_keys; first += G::kWidth) {
    const MapTile key{tile.b, tile.h, first, min(G::kWidth, all_keys - first)};
    load_tile<G, G::kWidth>(m, m.k[map], key, keys);
    __syncthreads();
    typename G::Scores scores;
    multiply<G>(queries, keys, m.extent.head_dim, scores);
    __syncthreads();  // all have read the keys
#pragma unroll
    for (int i = 0; i < G::kRows; ++i) {
      T most = highest[i], sum = T(0);
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) {
        scores[i][j] = G::column(j) < key.count ? scores[i][j] * static_cast<T>(m.scale * kLog2E)
                                                : -static_cast<T>(INFINITY);
        most = scores[i][j] > most ? scores[i][j] : most;
      }
      most = row_highest(most);
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j) sum = sum + power_of_two(scores[i][j] - most);
      total[i] = fma_(total[i], power_of_two(highest[i] - most), row_total(sum));
      highest[i] = most;
    }
  }
  if (G::x() != 0) return;
#pragma unroll
  for (int i = 0; i < G::kRows; ++i)
    if (G::row(i) < tile.count) known.rows[map][map_row(m, tile, G::row(i))] = {highest[i], T(1) / total[i]};
}

// ---- the energies ----------------------------------------------------------------------------------------

struct StoreEnergy {
  Scores energy;
  double numel;
  __device__ void operator()(int64_t sample, const double (&sum)[1]) const {
    store_as<double>(energy.data, energy.dtype, sample * energy.sample, sum[0] / numel);
  }
};

// From those of the queries.
inline void launch_energies(const Maps& m, const double* energy, cudaStream_t stream) {
  launch(&reduce::reduce_partials<1, StoreEnergy>, dim3(blocks_for(m.extent.samples, 1)),
         dim3(reduce::kThreads), 0, stream, energy, m.extent.heads * m.extent.queries,
         StoreEnergy{m.energy, m.numel()});
}

// ---- launches --------------------------------------------------------------------------------------------

template <class G>
void launch_rows(const Maps& m, const MapScratch<typename G::Real>& known, cudaStream_t stream) {
  constexpr size_t kSmem = (G::kRowTile + G::kColumnTile) * sizeof(typename G::Real);
  static_assert(kSmem <= kMostSmem);
  launch(&measure_rows<G>, dim3(map_tiles<G::kHeight>(m, m.extent.queries), 2), dim3(G::kThreads), kSmem,
         stream, m, known);
}

// body(G{}) with the tiling for these maps: two tiles of rows and two of columns, and one of weights, fit
// into shared memory.
template <class Body>
void with_tiling(const Maps& m, const Body& body) {
  const int dim = m.extent.head_dim;
  if (m.wide()) {
    if (dim <= 64) return body(Tiling<double, 64, 1, 1>{});
    if (dim <= 128) return body(Tiling<double, 128, 1, 1>{});
    return body(Tiling<double, 256, 1, 1, 8>{});
  }
  if (dim <= 64) return body(Tiling<float, 64, 2, 2>{});
  if (dim <= 128) return body(Tiling<float, 128, 2, 2>{});
  return body(Tiling<float, 256, 1, 1>{});
}

}  // namespace
}  // namespace fastdiff::attention
