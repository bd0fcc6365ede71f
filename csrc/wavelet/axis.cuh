// SPDX-License-Identifier: Apache-2.0
// What the kernels have in common that dwt and idwt run for what march.cuh does not serve: one axis at a
// time, a thread for each two results, intermediates in the order [planes, bands, *dimensions, group].
#pragma once

#include "core/lanes.h"
#include "core/launch.cuh"
#include "wavelet/filter_bank.h"

namespace fastdiff::wavelet {
namespace {

constexpr int kAxisThreads = 256;

// A stencil in the arithmetic's own type, in shared memory.
template <class T>
struct Weights {
  T u[kMaxTaps], v[kMaxTaps];
  int at[kMaxTaps];
  int both, end_u, end_v;

  // All threads of the block call it; a barrier has to follow.
  __device__ void fill(const Stencil& s) {
    const int taps = s.both + s.only_u + s.only_v;
    for (int e = threadIdx.x; e < taps; e += kAxisThreads) {
      u[e] = static_cast<T>(s.tap[e].u);
      v[e] = static_cast<T>(s.tap[e].v);
      at[e] = s.tap[e].at;
    }
    if (threadIdx.x != 0) return;
    both = s.both;
    end_u = s.both + s.only_u;
    end_v = taps;
  }

  // Both sums. sample(place, x) gives what is at a place, or false: there is nothing.
  template <class Sample>
  __device__ void sum(const Sample& sample, T& sum_u, T& sum_v) const {
    sum_u = sum_v = T(0);
    T x;
    int e = 0;
    for (; e < both; ++e)
      if (sample(at[e], x)) {
        sum_u = fma_(u[e], x, sum_u);
        sum_v = fma_(v[e], x, sum_v);
      }
    for (; e < end_u; ++e)
      if (sample(at[e], x)) sum_u = fma_(u[e], x, sum_u);
    for (; e < end_v; ++e)
      if (sample(at[e], x)) sum_v = fma_(v[e], x, sum_v);
  }
};

// A position in [planes, bands, *dimensions, group].
struct Position {
  int64_t plane = 0;
  int band = 0;
  int64_t at[kMaxSpatial] = {};
  int64_t element = 0;  // of the group

  // Of number `index` among all with these extents.
  template <class Index>
  __device__ static Position of(Index index, int bands, int ndim, const int64_t (&extent)[kMaxSpatial],
                                int64_t group) {
    Position here;
    here.element = index % static_cast<Index>(group);
    index /= static_cast<Index>(group);
#pragma unroll
    for (int d = kMaxSpatial - 1; d >= 0; --d)
      if (d < ndim) {
        here.at[d] = index % static_cast<Index>(extent[d]);
        index /= static_cast<Index>(extent[d]);
      }
    here.band = static_cast<int>(index % static_cast<Index>(bands));
    here.plane = index / static_cast<Index>(bands);
    return here;
  }

  // Its place in an intermediate with these extents.
  __device__ int64_t offset(int bands, int ndim, const int64_t (&extent)[kMaxSpatial], int64_t group) const {
    int64_t offset = plane * bands + band;
#pragma unroll
    for (int d = 0; d < kMaxSpatial; ++d)
      if (d < ndim) offset = offset * extent[d] + at[d];
    return offset * group + element;
  }
};

inline int64_t product(const int64_t (&extent)[kMaxSpatial], int ndim) {
  int64_t n = 1;
  for (int d = 0; d < ndim; ++d) n *= extent[d];
  return n;
}

}  // namespace
}  // namespace fastdiff::wavelet
