// SPDX-License-Identifier: Apache-2.0
// What both directions of a pyramid do on CUDA: a block takes a tile of a coarse image, with a halo, to the
// fine rows and columns that belong to it.
#pragma once

#include "core/walk.cuh"
#include "wavelet/pyramid.h"

namespace fastdiff::pyramid {
namespace {

constexpr int kTileRows = 8, kTileColumns = 32;  // coarse; a warp is as wide as a tile
constexpr int kHaloRows = kTileRows + 2 * kUpReach, kHaloColumns = kTileColumns + 2 * kUpReach;
constexpr int kFineRows = 2 * kTileRows, kFineColumns = 2 * kTileColumns;
constexpr int kThreads = 256;

template <class T>
struct Tile {
  T coarse[kHaloRows][kHaloColumns];  // from row - kUpReach, column - kUpReach on; what there is of it
  T wide[kHaloRows][kFineColumns];
};

// Where a block works.
struct Place {
  int64_t plane;
  int row, column;  // the first of its tile, coarse
  int coarse_height, coarse_width, height, width;
};

__host__ __device__ inline int64_t tiles_across(const Level& level) {
  return (coarse_size(level.width) + kTileColumns - 1) / kTileColumns;
}

__host__ __device__ inline int64_t tiles_of(const Level& level) {
  return (coarse_size(level.height) + kTileRows - 1) / kTileRows * tiles_across(level);
}

__device__ inline Place place_of(const Level& level) {
  const int64_t tile = blockIdx.x % tiles_of(level), across = tiles_across(level);
  return {blockIdx.x / tiles_of(level),
          static_cast<int>(tile / across) * kTileRows,
          static_cast<int>(tile % across) * kTileColumns,
          static_cast<int>(coarse_size(level.height)),
          static_cast<int>(coarse_size(level.width)),
          static_cast<int>(level.height),
          static_cast<int>(level.width)};
}

__device__ inline int64_t plane_offset(const Level& level, const Image& image, int64_t plane) {
  return offset_of(plane, level.dims, level.size, image.plane);
}

// body(row, column) for the cells of an array, shared out to the block.
template <int kRows, int kColumns, class Body>
__device__ __forceinline__ void each_cell(const Body& body) {
  for (int n = threadIdx.x; n < kRows * kColumns; n += kThreads) body(n / kColumns, n % kColumns);
}

// write(row, column, value) for each fine pixel that belongs to the tile, whose coarse rows and columns the
// block has just stored.
template <class T, class Write>
__device__ void expand(const Place& at, Tile<T>& tile, const Write& write) {
  __syncthreads();
  each_cell<kHaloRows, kFineColumns>([&](int r, int c) {
    const int column = 2 * at.column + c;
    if (column >= at.width) return;
    const int first = up_first(column) - (at.column - kUpReach);
    tile.wide[r][c] = sum_of_present(up_weights<T>(column, at.coarse_width),
                                     [&](int k) { return tile.coarse[r][first + k]; });
  });
  __syncthreads();
  each_cell<kFineRows, kFineColumns>([&](int r, int c) {
    const int row = 2 * at.row + r, column = 2 * at.column + c;
    if (row >= at.height || column >= at.width) return;
    const int first = up_first(row) - (at.row - kUpReach);
    write(row, column, sum_of_present(up_weights<T>(row, at.coarse_height), [&](int k) {
            return tile.wide[first + k][c];
          }));
  });
}

}  // namespace
}  // namespace fastdiff::pyramid
