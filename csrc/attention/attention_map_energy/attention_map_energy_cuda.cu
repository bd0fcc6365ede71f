// SPDX-License-Identifier: Apache-2.0
// attention_map_energy on CUDA: the rows' sums, then the squares of each row, then those of a sample. Each
// sum is one chain or tree in a fixed order, with no atomics.
#include "attention/attention_map_energy/attention_map_energy.h"
#include "attention/maps.cuh"

namespace fastdiff::attention_map_energy {
namespace {

using namespace attention;

template <class G>
constexpr size_t smem_bytes() {
  return (2 * G::kRowTile + 2 * G::kColumnTile) * sizeof(typename G::Real);
}

template <class G>
__global__ void __launch_bounds__(G::kThreads)
    square_rows(const Params p, MapScratch<typename G::Real> known) {
  using T = typename G::Real;
  T* const queries[2] = {dynamic_smem<T>(), dynamic_smem<T>() + G::kRowTile};  // [kHeight][kDim]
  T* const keys[2] = {queries[1] + G::kRowTile, queries[1] + G::kRowTile + G::kColumnTile};  // [kWidth][kDim]
  const MapTile tile = map_tile<G::kHeight>(p, p.extent.queries, blockIdx.x);
  MapRow<T> row[2][G::kRows];
#pragma unroll
  for (int map = 0; map < 2; ++map) {
    load_tile<G, G::kHeight>(p, p.q[map], tile, queries[map]);
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
      row[map][i] = G::row(i) < tile.count ? known.rows[map][map_row(p, tile, G::row(i))] : no_row<T>();
  }
  T energy[G::kRows];
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) energy[i] = T(0);
  const int all_keys = static_cast<int>(p.extent.keys);
  for (int first = 0; first < all_keys; first += G::kWidth) {
    const MapTile key{tile.b, tile.h, first, min(G::kWidth, all_keys - first)};
    typename G::Scores products[2];
#pragma unroll
    for (int map = 0; map < 2; ++map) load_tile<G, G::kWidth>(p, p.k[map], key, keys[map]);
    __syncthreads();
#pragma unroll
    for (int map = 0; map < 2; ++map) multiply<G>(queries[map], keys[map], p.extent.head_dim, products[map]);
    __syncthreads();  // all have read the keys
#pragma unroll
    for (int i = 0; i < G::kRows; ++i)
#pragma unroll
      for (int j = 0; j < G::kColumns; ++j)
        if (G::column(j) < key.count)
          energy[i] = add_energy(energy[i], pair_of(weight_of(p, row[0][i], products[0][i][j]),
                                                    weight_of(p, row[1][i], products[1][i][j])));
  }
#pragma unroll
  for (int i = 0; i < G::kRows; ++i) {
    energy[i] = row_total(energy[i]);
    if (G::x() == 0 && G::row(i) < tile.count)
      known.energy[map_row(p, tile, G::row(i))] = static_cast<double>(energy[i]);
  }
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  with_tiling(params, [&](auto tiling) {
    using G = decltype(tiling);
    static_assert(smem_bytes<G>() <= kMostSmem);
    const MapScratch<typename G::Real> known(params, scratch);
    if (params.extent.heads * params.extent.queries > 0) {
      launch_rows<G>(params, known, on);
      launch(&square_rows<G>, dim3(map_tiles<G::kHeight>(params, params.extent.queries)), dim3(G::kThreads),
             smem_bytes<G>(), on, params, known);
    }
    launch_energies(params, known.energy, on);
  });
}

}  // namespace fastdiff::attention_map_energy
