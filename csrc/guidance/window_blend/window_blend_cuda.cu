// SPDX-License-Identifier: Apache-2.0
// window_blend on CUDA: a thread takes one pixel of several planes through the list of its tile.
//
// A warp reads 32 neighbours of each view, and what it reads of the list, all of its threads read. Lists come
// from memory that the host cannot see: whatever they hold, nothing outside the views is read.
#include <algorithm>

#include "core/walk.cuh"
#include "guidance/window_blend/window_blend_math.h"

namespace fastdiff::window_blend {
namespace {

constexpr int kThreads = 256;
constexpr int kPlanes = 4;  // of a thread, where there is enough work without it
constexpr int64_t kBlocksPerProcessor = 8;
constexpr int64_t kMaxGroups = 65535;  // gridDim.y

// Whether begin <= at < begin + length, for any begin: the difference wraps.
__device__ __forceinline__ bool covers(int64_t begin, int64_t length, int64_t at) {
  return static_cast<uint64_t>(at) - static_cast<uint64_t>(begin) < static_cast<uint64_t>(length);
}

template <class T, class Index, int kCount>
__global__ void __launch_bounds__(kThreads) blend(const Params p) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= p.height * p.width * p.group) return;
  const Index pixel = static_cast<Index>(element) / static_cast<Index>(p.group);
  const int64_t channel = static_cast<Index>(element) % static_cast<Index>(p.group);
  const int64_t y = pixel / static_cast<Index>(p.width), x = pixel % static_cast<Index>(p.width);
  const Table& table = p.table;
  const int64_t tile =
      static_cast<int64_t>(static_cast<Index>(y) / static_cast<Index>(table.tile.rows)) * table.across +
      static_cast<Index>(x) / static_cast<Index>(table.tile.columns);
  const int64_t begin = table.first[tile], end = table.first[tile + 1];
  if (begin < 0 || end > table.places)
    device_refusal("fastdiff::window_blend: the table is not one of these views");

  for (int64_t first = int64_t{blockIdx.y} * kCount; first < p.planes; first += int64_t{gridDim.y} * kCount) {
    T sum[kCount], weight_sum = 0;
    int64_t from[kCount];
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      // Past the last plane, the last one again: its result is not stored.
      from[n] = channel + offset_of(min(first + n, p.planes - 1), p.dims, p.size, p.x.plane);
      sum[n] = 0;
    }
    for (int64_t at = begin; at < end; ++at) {
      const int64_t view = table.place[kPlaceNumbers * at], y0 = table.place[kPlaceNumbers * at + 1],
                    x0 = table.place[kPlaceNumbers * at + 2];
      if (!covers(y0, p.view_height, y) || !covers(x0, p.view_width, x)) continue;
      if (view < 0 || view >= p.views)
        device_refusal("fastdiff::window_blend: the table is not one of these views");
      const T weight = p.weighting == Weighting::none ? T(1) : weight_at<T>(p.weights, view, y - y0, x - x0);
      weight_sum = plus(weight_sum, weight);
      if (weight == T(0)) continue;
      const int64_t offset = view * p.x.view + (y - y0) * p.x.row + (x - x0) * p.x.column;
#pragma unroll
      for (int n = 0; n < kCount; ++n)
        sum[n] = fma_(weight, load_as<T>(p.x.data, p.dtype, offset + from[n]), sum[n]);
    }
    const int64_t to = channel + y * p.y.row + x * p.y.column;
#pragma unroll
    for (int n = 0; n < kCount; ++n)
      if (first + n < p.planes)
        store_as<T>(p.y.data, p.dtype, to + offset_of(first + n, p.dims, p.size, p.y.plane),
                    mean(sum[n], weight_sum));
  }
}

template <class T, class Index>
void launch_planes(const Params& p, cudaStream_t stream) {
  const unsigned blocks = blocks_for(p.height * p.width * p.group, kThreads);
  const int64_t groups = (p.planes + kPlanes - 1) / kPlanes;
  const bool fills = blocks * groups >= kBlocksPerProcessor * multiprocessors("window_blend");
  const auto grid = [&](int64_t rows) {
    return dim3(blocks, static_cast<unsigned>(std::min(rows, kMaxGroups)));
  };
  if (p.planes > 1 && fills) {
    launch(&blend<T, Index, kPlanes>, grid(groups), dim3(kThreads), 0, stream, p);
  } else {
    launch(&blend<T, Index, 1>, grid(p.planes), dim3(kThreads), 0, stream, p);
  }
}

template <class T>
void launch_as(const Params& p, cudaStream_t stream) {
  if (p.height * p.width * p.group <= kMaxInt32) {
    launch_planes<T, uint32_t>(p, stream);
  } else {
    launch_planes<T, int64_t>(p, stream);
  }
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (params.dtype == DType::f64) {
    launch_as<double>(params, on);
  } else {
    launch_as<float>(params, on);
  }
}

bool is_capturing(int device, void* stream) {
#if defined(__CUDACC__)
  const OnDevice on_device(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "window_blend");
  return status != cudaStreamCaptureStatusNone;
#else
  static_cast<void>(device), static_cast<void>(stream);
  return false;
#endif
}

void synchronize(int device) {
  const OnDevice on_device(device);
  check_cuda(cudaDeviceSynchronize(), "window_blend");
}

}  // namespace fastdiff::window_blend
