// SPDX-License-Identifier: Apache-2.0
// laplacian_split on CUDA: one launch per level, from the finest to the coarsest. A block reads its tile of
// the image once, with a halo from which it forms the coarse rows next to its own again.
#include "wavelet/laplacian_split/laplacian_split_math.h"
#include "wavelet/pyramid.cuh"

namespace fastdiff::laplacian_split {
namespace {

using namespace pyramid;

constexpr int kDownReach = 2;                      // fine rows before those of a coarse one
constexpr int kReach = 2 * kUpReach + kDownReach;  // fine rows before those of the tile
constexpr int kReadRows = kFineRows + 2 * kReach;  // from 2 at.row - kReach on
constexpr int kReadColumns = kFineColumns + 2 * kReach;

template <class T>
struct Read {
  T fine[kReadRows][kReadColumns];  // with what lies beyond the ends
  T mixed[kHaloRows][kReadColumns];
};

// The row of n that stands at k; far beyond the ends, where nothing is needed, any.
__device__ __forceinline__ int source(int k, int n) {
  return extended(min(max(k, -kDownReach), 2 * coarse_size(n) + 1), n);
}

template <class T>
__global__ void __launch_bounds__(kThreads) split_level(const Level level) {
  __shared__ Tile<T> tile;
  __shared__ Read<T> read;
  const Place at = place_of(level);
  const Image &x = level.whole, &y = level.detail, &to = level.coarse;
  const int64_t own = plane_offset(level, x, at.plane), result = plane_offset(level, y, at.plane);
  const int64_t coarse = plane_offset(level, to, at.plane);
  each_cell<kReadRows, kReadColumns>([&](int r, int c) {
    const int64_t row = source(2 * at.row - kReach + r, at.height);
    const int64_t column = source(2 * at.column - kReach + c, at.width);
    read.fine[r][c] = load_as<T>(x.data, x.dtype, own + row * x.row + column * x.column);
  });
  __syncthreads();
  each_cell<kHaloRows, kReadColumns>([&](int r, int c) {
    read.mixed[r][c] = sum_of_taps<kDownTaps, T>([](int k) { return down_weight<T>(k); },
                                                 [&](int k) { return read.fine[2 * r + k][c]; });
  });
  __syncthreads();
  each_cell<kHaloRows, kHaloColumns>([&](int r, int c) {
    const T value = sum_of_taps<kDownTaps, T>([](int k) { return down_weight<T>(k); },
                                              [&](int k) { return read.mixed[r][2 * c + k]; });
    tile.coarse[r][c] = value;
    const int64_t row = at.row - kUpReach + r, column = at.column - kUpReach + c;
    const bool is_own =
        r >= kUpReach && r < kUpReach + kTileRows && c >= kUpReach && c < kUpReach + kTileColumns;
    if (is_own && row < at.coarse_height && column < at.coarse_width)
      store_as<T>(to.data, to.dtype, coarse + row * to.row + column * to.column, value);
  });
  expand(at, tile, [&](int row, int column, T expanded) {
    const T value = read.fine[row - 2 * at.row + kReach][column - 2 * at.column + kReach];
    store_as<T>(y.data, y.dtype, result + int64_t{row} * y.row + int64_t{column} * y.column,
                detail(value, expanded));
  });
}

template <class T>
void launch_levels(const Params& p, cudaStream_t stream) {
  for (int n = 0; n < p.levels; ++n) {
    const Level& level = p.level[n];
    launch(&split_level<T>, dim3(blocks_for(p.planes * tiles_of(level), 1)), dim3(kThreads), 0, stream,
           level);
  }
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (params.wide) {
    launch_levels<double>(params, on);
  } else {
    launch_levels<float>(params, on);
  }
}

}  // namespace fastdiff::laplacian_split
