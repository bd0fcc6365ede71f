// SPDX-License-Identifier: Apache-2.0
// The fused kernels of dwt and idwt: all dimensions in one pass, for filters of up to kMarchTaps taps.
//
// A warp marches down a strip of the sequence of filter_bank.h. Each lane holds one pair of columns, and of
// those the L rows in registers that an outer axis needs: a step reads two new rows, makes the two sums for
// both columns, gets the neighbours' columns by shuffles, makes the last axis' sums, and writes. Nothing goes
// through shared memory and no warp waits for another.
//
// Per element: L multiply-adds for each axis and (L - 2) / 2 shuffles. Bytes: each element is read from
// memory once and each result is written once. A strip is 32 - (L/2 - 1) pairs of results wide, and starts
// with L - 2 rows that the warp above has read too: those are found in the caches. Three axes: the first one
// reads L rows where it stands, L/2 times in all; neighbouring warps of a block stand at neighbouring depths,
// so that these are hits in the first-level cache.
//
// Why rows in registers and not tiles in shared memory: in a tile each of two axes reads L/2 words of shared
// memory for each element. With 8 taps that is all that a multiprocessor can read while 4 TB/s come from
// memory in a 16-bit type; here half of the axes read none, and the last one L/2 - 1.
//
// An Op says where the sequence comes from and where results go, see dwt_cuda.cu and idwt_cuda.cu. Output j
// of an axis is made of the pairs of places j ... j + L/2 - 1.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/lanes.h"
#include "core/launch.cuh"
#include "wavelet/march.h"

namespace fastdiff::wavelet {
namespace {

constexpr int kWarp = 32;
constexpr int kMarchThreads = 128;  // their warps share nothing: small blocks leave no idle ones at the end
constexpr int kMarchWarps = kMarchThreads / kWarp;
constexpr int kAhead = 2;  // steps between reading two rows and using them: about 1 KiB under way per warp
constexpr unsigned kAllLanes = 0xffffffffu;

// The taps as an argument of a kernel, so that a multiply-add takes its weight from constant memory. A filter
// may be shorter than kL.
template <class T, int kL>
struct Taps {
  T u[kL] = {}, v[kL] = {};
  uint32_t both = 0, only_u = 0, only_v = 0;  // bit t

  explicit Taps(const Stencil& s) {
    for (int e = 0; e < s.taps(); ++e) {
      const Tap& tap = s.tap[static_cast<size_t>(e)];
      u[tap.at] = static_cast<T>(tap.u);
      v[tap.at] = static_cast<T>(tap.v);
      (e < s.both ? both : e < s.both + s.only_u ? only_u : only_v) |= 1u << tap.at;
    }
  }
};

template <int kL>
inline constexpr uint32_t kEvery = (1u << kL) - 1;

// Both sums of `kCount` sequences at once, over the places that are `there` (bit t).
template <int kL, int kCount, class T>
__device__ __forceinline__ void mix(const T (&s)[kL][kCount], const Taps<T, kL>& f, uint32_t there,
                                    T (&u)[kCount], T (&v)[kCount]) {
#pragma unroll
  for (int c = 0; c < kCount; ++c) u[c] = v[c] = T(0);
  if ((f.both & there) == kEvery<kL>) {
#pragma unroll
    for (int t = 0; t < kL; ++t)
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        u[c] = fma_(f.u[t], s[t][c], u[c]);
        v[c] = fma_(f.v[t], s[t][c], v[c]);
      }
    return;
  }
  // The stencil's order: u and v have some taps in common, and those come first.
#pragma unroll
  for (int t = 0; t < kL; ++t)
    if (f.both & there & (1u << t)) {
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        u[c] = fma_(f.u[t], s[t][c], u[c]);
        v[c] = fma_(f.v[t], s[t][c], v[c]);
      }
    }
#pragma unroll
  for (int t = 0; t < kL; ++t) {
    if (f.only_u & there & (1u << t)) {
#pragma unroll
      for (int c = 0; c < kCount; ++c) u[c] = fma_(f.u[t], s[t][c], u[c]);
    }
    if (f.only_v & there & (1u << t)) {
#pragma unroll
      for (int c = 0; c < kCount; ++c) v[c] = fma_(f.v[t], s[t][c], v[c]);
    }
  }
}

// The last axis: both sums of each row, whose columns the lanes hold in pairs. The last L/2 - 1 lanes lack
// neighbours, and get nothing of use.
template <int kL, int kRows, class T>
__device__ __forceinline__ void mix_across(const T (&own)[kRows][2], const Taps<T, kL>& f, T (&low)[kRows],
                                           T (&high)[kRows]) {
  T s[kL][kRows];
#pragma unroll
  for (int t = 0; t < kL; ++t)
#pragma unroll
    for (int n = 0; n < kRows; ++n)
      s[t][n] = t < 2 ? own[n][t] : __shfl_down_sync(kAllLanes, own[n][t % 2], static_cast<unsigned>(t / 2));
  mix(s, f, kEvery<kL>, low, high);
}

// ---- elements, and two that lie side by side, aligned to both ---------------------------------------

__device__ __forceinline__ float loaded(float x) {
  return x;
}
__device__ __forceinline__ float loaded(half_t x) {
  return widen(x);
}
__device__ __forceinline__ float loaded(bfloat16_t x) {
  return widen(x);
}

template <class S>
__device__ __forceinline__ S stored(float x) {
  if constexpr (sizeof(S) == sizeof(float)) {
    return x;
  } else if constexpr (std::is_same_v<S, half_t>) {
    return to_half(x);
  } else {
    return to_bfloat16(x);
  }
}

__device__ __forceinline__ void load_pair(const float* from, float (&x)[2]) {
  const float2 v = *reinterpret_cast<const float2*>(from);
  x[0] = v.x;
  x[1] = v.y;
}
template <class S>
__device__ __forceinline__ void load_pair(const S* from, S (&x)[2]) {
  const uint32_t bits = *reinterpret_cast<const uint32_t*>(from);
  x[0].bits = static_cast<uint16_t>(bits);
  x[1].bits = static_cast<uint16_t>(bits >> 16);
}
__device__ __forceinline__ void store_pair(float* to, float low, float high) {
  *reinterpret_cast<float2*>(to) = make_float2(low, high);
}
template <class S>
__device__ __forceinline__ void store_pair(S* to, S low, S high) {
  *reinterpret_cast<uint32_t*>(to) = low.bits | static_cast<uint32_t>(high.bits) << 16;
}

// ---- the march ------------------------------------------------------------------------------------

// How a launch is divided: a warp makes `rows` outputs of the axis before the last (or of one axis: strips),
// of one strip, of one output of the first of three axes, of one plane.
struct Tasks {
  int64_t first[kMaxSpatial] = {}, end[kMaxSpatial] = {};  // outputs of each axis
  int64_t depths = 1, strips = 1, chunks = 1, rows = 1;
  int64_t count = 0;
  bool pairs = false;  // two neighbouring elements of the signal can be one access
};

template <int kL>
inline constexpr int kStrip = kWarp - (kL / 2 - 1);

template <int kL>
Tasks tasks_of(int ndim, int64_t planes, const int64_t* first, const int64_t* end, bool pairs) {
  constexpr int64_t kWarpsPerProcessor = 64;
  Tasks t;
  t.pairs = pairs;
  for (int a = 0; a < ndim; ++a) {
    t.first[a] = first[a];
    t.end[a] = end[a];
  }
  t.strips = (end[ndim - 1] - first[ndim - 1] + kStrip<kL> - 1) / kStrip<kL>;
  if (ndim == 3) t.depths = end[0] - first[0];
  const int64_t rows = ndim == 1 ? t.strips : end[ndim - 2] - first[ndim - 2];
  const int64_t across = planes * t.depths * (ndim == 1 ? 1 : t.strips);
  const int64_t enough = kWarpsPerProcessor * multiprocessors("wavelet");
  // As long a march as leaves every multiprocessor full.
  int64_t most = ndim == 1 ? 8 : 64;
  const int64_t least = ndim == 1 ? 1 : 8;
  while (most > least && across * ((rows + most - 1) / most) < enough) most /= 2;
  t.rows = std::min(rows, most);
  t.chunks = (rows + t.rows - 1) / t.rows;
  t.count = across * t.chunks;
  return t;
}

// Two rows of a lane's columns on their way from memory.
template <class Op>
struct Ahead {
  typename Op::Line line[2];
  typename Op::Storage raw[2][2];
};

template <class Op, int kL>
__device__ void march_along(Op& op, const Taps<float, kL>& f, const Tasks& tasks, int64_t chunk) {
  const int64_t begin = chunk * tasks.rows, end = min(begin + tasks.rows, tasks.strips);
#pragma unroll 2
  for (int64_t strip = begin; strip < end; ++strip) {
    op.template stand_at<kL>(tasks.first[0] + strip * kStrip<kL>, tasks.end[0]);
    typename Op::Storage raw[2];
    op.fetch({}, {}, 0, raw);
    float own[1][2] = {{op.value(raw[0], 0), op.value(raw[1], 1)}}, low[1], high[1];
    op.pad(own[0]);
    mix_across(own, f, low, high);
    op.put({}, {}, 0, low[0], high[0]);
  }
}

template <class Op, int kL>
__device__ void march_image(Op& op, const Taps<float, kL>& f, const Tasks& tasks, int64_t chunk) {
  constexpr int kPairs = kL / 2;
  const int64_t begin = tasks.first[0] + chunk * tasks.rows, end = min(begin + tasks.rows, tasks.end[0]);
  float window[kL][2];  // the rows of an output
  uint32_t there = 0;   // bit t: there is such a row
  const auto fetch = [&](int64_t pair, Ahead<Op>& to) {
#pragma unroll
    for (int bit = 0; bit < 2; ++bit) {
      to.line[bit] = op.line(0, pair, bit);
      op.fetch(to.line[bit], {}, 2 * bit, to.raw[bit]);
    }
  };
  const auto take = [&](const Ahead<Op>& from, int place) {
#pragma unroll
    for (int bit = 0; bit < 2; ++bit) {
      there |= static_cast<uint32_t>(from.line[bit].there()) << (place + bit);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        window[place + bit][c] = from.line[bit].turned(op.value(from.raw[bit][c], 2 * bit + c));
    }
  };
#pragma unroll
  for (int n = 0; n < kPairs - 1; ++n) {
    Ahead<Op> first;
    fetch(begin + n, first);
    take(first, 2 * n);
  }
  Ahead<Op> ahead[kAhead];
#pragma unroll
  for (int a = 0; a < kAhead; ++a)
    if (begin + a < end) fetch(begin + a + kPairs - 1, ahead[a]);
  for (int64_t row = begin; row < end; row += kAhead) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (row + a >= end) break;
      take(ahead[a], kL - 2);
      if (row + a + kAhead < end) fetch(row + a + kAhead + kPairs - 1, ahead[a]);
      float u[2], v[2];
      mix(window, f, there, u, v);
      float own[2][2] = {{u[0], u[1]}, {v[0], v[1]}}, low[2], high[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) op.pad(own[n]);
      mix_across(own, f, low, high);
#pragma unroll
      for (int n = 0; n < 2; ++n) op.put(op.target(0, row + a, n), {}, 2 * n, low[n], high[n]);
#pragma unroll
      for (int t = 0; t + 2 < kL; ++t)
#pragma unroll
        for (int c = 0; c < 2; ++c) window[t][c] = window[t + 2][c];
      there >>= 2;
    }
  }
}

template <class Op, int kL>
__device__ void march_volume(Op& op, const Taps<float, kL>& f, const Tasks& tasks, int64_t chunk,
                             int64_t depth) {
  constexpr int kPairs = kL / 2;
  const int64_t begin = tasks.first[1] + chunk * tasks.rows, end = min(begin + tasks.rows, tasks.end[1]);
  typename Op::Line deep[kL];
  uint32_t deep_there = 0;
#pragma unroll
  for (int t = 0; t < kL; ++t) {
    deep[t] = op.line(0, depth + t / 2, t % 2);
    deep_there |= static_cast<uint32_t>(deep[t].there()) << t;
  }
  float window[kL][4];  // the rows of both of the first axis' results
  uint32_t there = 0;
  const auto take = [&](int64_t pair, int place) {
#pragma unroll
    for (int bit = 0; bit < 2; ++bit) {
      const typename Op::Line line = op.line(1, pair, bit);
      there |= static_cast<uint32_t>(line.there()) << (place + bit);
      float s[kL][2], u[2], v[2];
#pragma unroll
      for (int t = 0; t < kL; ++t) {
        const int band = 4 * (t % 2) + 2 * bit;
        typename Op::Storage raw[2];
        op.fetch(deep[t], line, band, raw);
#pragma unroll
        for (int c = 0; c < 2; ++c) s[t][c] = deep[t].turned(op.value(raw[c], band + c));
      }
      mix(s, f, deep_there, u, v);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        window[place + bit][c] = line.turned(u[c]);
        window[place + bit][2 + c] = line.turned(v[c]);
      }
    }
  };
#pragma unroll
  for (int n = 0; n < kPairs - 1; ++n) take(begin + n, 2 * n);
  for (int64_t row = begin; row < end; ++row) {
    take(row + kPairs - 1, kL - 2);
    float u[4], v[4];
    mix(window, f, there, u, v);
    // Bands of the first axis, then of the second.
    float own[4][2] = {{u[0], u[1]}, {v[0], v[1]}, {u[2], u[3]}, {v[2], v[3]}}, low[4], high[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) op.pad(own[n]);
    mix_across(own, f, low, high);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      op.put(op.target(0, depth, n / 2), op.target(1, row, n % 2), 2 * n, low[n], high[n]);
#pragma unroll
    for (int t = 0; t + 2 < kL; ++t)
#pragma unroll
      for (int c = 0; c < 4; ++c) window[t][c] = window[t + 2][c];
    there >>= 2;
  }
}

// Blocks that a multiprocessor holds at least: as many as leave each thread the registers that a march needs,
// 64 for the shortest filters to 168 for the longest.
template <int kAxes, int kL>
inline constexpr int kResident = kAxes == 3 ? (kL < kMarchVolumeTaps ? 4 : 3)
                                 : kL <= 2  ? 8
                                 : kL <= 4  ? 7
                                 : kL <= 8  ? 6
                                 : kL <= 12 ? 4
                                            : 3;

template <class Op, int kAxes, int kL>
__global__ void __launch_bounds__(kMarchThreads, (kResident<kAxes, kL>))
    march(const typename Op::Params p, const Taps<float, kL> f, const Tasks tasks) {
  __shared__ float numbers[kMarchWarps][Op::kNumbers];
  int64_t task = static_cast<int64_t>(blockIdx.x) * kMarchWarps + threadIdx.x / kWarp;
  float* const own = numbers[threadIdx.x / kWarp];
  if (task >= tasks.count) return;  // the whole warp
  const int64_t depth = task % tasks.depths;
  task /= tasks.depths;
  if constexpr (kAxes == 1) {
    Op op(p, tasks.pairs, task / tasks.chunks, own);
    march_along<Op, kL>(op, f, tasks, task % tasks.chunks);
  } else {
    const int64_t strip = task % tasks.strips;
    task /= tasks.strips;
    Op op(p, tasks.pairs, task / tasks.chunks, own);
    op.template stand_at<kL>(tasks.first[kAxes - 1] + strip * kStrip<kL>, tasks.end[kAxes - 1]);
    if constexpr (kAxes == 2) {
      march_image<Op, kL>(op, f, tasks, task % tasks.chunks);
    } else {
      march_volume<Op, kL>(op, f, tasks, task % tasks.chunks, tasks.first[0] + depth);
    }
  }
}

// `first` and `end`: outputs of each axis.
template <class Op, int kAxes, int kL>
void launch_march(const typename Op::Params& p, const int64_t* first, const int64_t* end, bool pairs,
                  cudaStream_t stream) {
  static_assert(sizeof(typename Op::Params) + sizeof(Taps<float, kL>) + sizeof(Tasks) <= 4096,
                "a kernel's arguments");
  const Tasks tasks = tasks_of<kL>(kAxes, p.planes.count, first, end, pairs);
  launch(&march<Op, kAxes, kL>, dim3(blocks_for(tasks.count, kMarchWarps)), dim3(kMarchThreads), 0, stream, p,
         Taps<float, kL>(p.stencil), tasks);
}

// Calls run with an element of the storage type, which is not float64.
template <class Run>
void with_float(DType dtype, const Run& run) {
  if (dtype == DType::f16) return run(half_t{});
  if (dtype == DType::bf16) return run(bfloat16_t{});
  run(float{});
}

// Calls run.operator()<number of axes, number of taps, or somewhat more>().
template <class Run>
void with_taps(int ndim, int length, const Run& run) {
  if (ndim == 1) {
    if (length <= 2) return run.template operator()<1, 2>();
    if (length <= 4) return run.template operator()<1, 4>();
    if (length <= 8) return run.template operator()<1, 8>();
    return run.template operator()<1, kMarchTaps>();
  }
  if (ndim == 2) {
    if (length <= 2) return run.template operator()<2, 2>();
    if (length <= 4) return run.template operator()<2, 4>();
    if (length <= 6) return run.template operator()<2, 6>();
    if (length <= 8) return run.template operator()<2, 8>();
    if (length <= 12) return run.template operator()<2, 12>();
    return run.template operator()<2, kMarchTaps>();
  }
  if (length <= 2) return run.template operator()<3, 2>();
  if (length <= 4) return run.template operator()<3, 4>();
  if (length <= 6) return run.template operator()<3, 6>();
  return run.template operator()<3, kMarchVolumeTaps>();
}

}  // namespace
}  // namespace fastdiff::wavelet
