// SPDX-License-Identifier: Apache-2.0
// laplacian_merge on CUDA: one launch per level, from the coarsest to the finest.
#include "wavelet/laplacian_merge/laplacian_merge_math.h"
#include "wavelet/pyramid.cuh"

namespace fastdiff::laplacian_merge {
namespace {

using namespace pyramid;

template <class T>
__global__ void __launch_bounds__(kThreads) merge_level(const Level level) {
  __shared__ Tile<T> tile;
  const Place at = place_of(level);
  const Image &from = level.coarse, &x = level.detail, &y = level.whole;
  const int64_t coarse = plane_offset(level, from, at.plane);
  const int64_t detail = plane_offset(level, x, at.plane), result = plane_offset(level, y, at.plane);
  each_cell<kHaloRows, kHaloColumns>([&](int r, int c) {
    const int row = at.row - kUpReach + r, column = at.column - kUpReach + c;
    const bool exists = row >= 0 && row < at.coarse_height && column >= 0 && column < at.coarse_width;
    tile.coarse[r][c] =
        exists ? load_as<T>(from.data, from.dtype, coarse + row * from.row + column * from.column) : T(0);
  });
  expand(at, tile, [&](int row, int column, T expanded) {
    const T own = load_as<T>(x.data, x.dtype, detail + row * x.row + column * x.column);
    store_as<T>(y.data, y.dtype, result + row * y.row + column * y.column, whole(own, expanded));
  });
}

template <class T>
void launch_levels(const Params& p, cudaStream_t stream) {
  for (int n = p.levels - 1; n >= 0; --n) {
    const Level& level = p.level[n];
    launch(&merge_level<T>, dim3(blocks_for(p.planes * tiles_of(level), 1)), dim3(kThreads), 0, stream,
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

}  // namespace fastdiff::laplacian_merge
