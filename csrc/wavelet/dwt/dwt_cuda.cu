// SPDX-License-Identifier: Apache-2.0
// dwt on CUDA: all dimensions in one kernel, or one axis at a time.
//
//   march     rows of memory and filters of usual length, see march.cuh
//   one_axis  all else: any strides, channels innermost, long filters, float64, extended samples that are
//             sums. x and the intermediates are read and written once per axis.
#include "wavelet/axis.cuh"
#include "wavelet/dwt/dwt_config.h"
#include "wavelet/dwt/dwt_math.h"
#include "wavelet/march.cuh"

namespace fastdiff::dwt {
namespace {

using wavelet::Axis;
using wavelet::Edge;
using wavelet::extend;
using wavelet::Extension;
using wavelet::kAxisThreads;
using wavelet::kMaxSpatial;
using wavelet::Position;

// ---- march: x is the sequence, coefficient k is output k ------------------------------------------

// extend() where that gives one sample or none: where it is, and its weight 1, -1 or 0. Without arrays and
// with one division it needs few registers.
__device__ __forceinline__ int nearest(int64_t i, int64_t size, Edge edge, int64_t& at) {
  const int64_t last = size - 1;
  const bool mirrors = edge == Edge::symmetric || edge == Edge::antisymmetric;
  at = 0;
  if (edge == Edge::zero) return 0;
  if (last == 0 && edge != Edge::antisymmetric && edge != Edge::circular) return 1;
  if (edge == Edge::constant) {
    at = i < 0 ? 0 : last;
    return 1;
  }
  const int64_t period = mirrors                  ? 2 * size
                         : edge == Edge::reflect  ? 2 * last
                         : edge == Edge::periodic ? size
                                                  : size + size % 2;
  const int64_t place = wavelet::modulo(i, period);
  at = place;
  if (place < size) return 1;
  at = mirrors ? 2 * size - 1 - place : edge == Edge::reflect ? 2 * last - place : last;
  if (edge == Edge::circular) return 0;
  return edge == Edge::antisymmetric ? -1 : 1;
}

template <class S, int kAxes>
class Analysis {
 public:
  using Params = dwt::Params;
  using Storage = S;

  // A row or a frame of x.
  struct Line {
    int64_t at = 0;
    int weight = 1;  // 0: there is none

    __device__ bool there() const { return weight != 0; }
    __device__ float turned(float x) const { return weight < 0 ? -x : x; }
  };
  // Where an outer axis puts an output.
  struct Target {
    int64_t at = 0;
    bool zero = false;  // past the bands
  };

  static constexpr int kNumbers = 1 << kAxes;  // that the warp keeps in shared memory

  __device__ Analysis(const Params& p, bool pairs, int64_t plane, float* factor)
      : p_(p),
        pairs_(pairs),
        x_(static_cast<const S*>(p.x) + p.planes.offset(kX, plane)),
        y_(static_cast<S*>(p.y) + p.planes.offset(kY, plane)),
        factor_(factor) {
    if (p.scale.data == nullptr) return;
    const int band = threadIdx.x % wavelet::kWarp;
    if (band < kNumbers)
      factor[band] =
          load_as<float>(p.scale.data, p.scale.dtype, p.planes.offset(kScale, plane) + band * p.scale.band);
    __syncwarp();
  }

  // The lane that holds pair `first` plus its number, of outputs up to `end`.
  template <int kL>
  __device__ void stand_at(int64_t first, int64_t end) {
    const Axis& axis = p_.axis[kAxes - 1];
    const int lane = threadIdx.x % wavelet::kWarp;
    const int64_t pair = first + lane;
    bool past = false;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const Line column = line(kAxes - 1, pair, c);
      const int64_t i = 2 * pair + c - p_.stencil.offset;
      past_[c] = i < 0 || i >= axis.size;
      past = past || past_[c];
      column_[c] = static_cast<int>(column.at);
      weight_[c] = column.weight;
    }
    paired_ = pairs_ && !past && column_[0] % 2 == 0;
    any_past_ = __any_sync(wavelet::kAllLanes, past) != 0;
    writes_ = lane < wavelet::kStrip<kL> && pair < end;
    zero_ = pair >= axis.bands;
    to_ = y_ + pair * axis.y;
  }

  __device__ Line line(int a, int64_t pair, int bit) const {
    const Axis& axis = p_.axis[a];
    const int64_t i = 2 * pair + bit - p_.stencil.offset;
    if (0 <= i && i < axis.size) return {i * axis.x, 1};
    int64_t at;
    const int weight = nearest(i, axis.size, p_.edge, at);
    return {at * axis.x, weight};
  }

  __device__ void fetch(const Line& outer, const Line& inner, int, S (&raw)[2]) const {
    const S* const row = x_ + outer.at + inner.at;
    if (paired_) {
      wavelet::load_pair(row + column_[0], raw);
    } else {
      raw[0] = row[column_[0]];
      raw[1] = row[column_[1]];
    }
  }
  __device__ float value(S raw, int) const { return wavelet::loaded(raw); }

  // Columns past the ends are those that they are made of.
  __device__ void pad(float (&row)[2]) const {
    if (!any_past_) return;
#pragma unroll
    for (int c = 0; c < 2; ++c)
      if (past_[c]) row[c] = weight_[c] == 0 ? 0 : fma_(static_cast<float>(weight_[c]), row[c], 0.0f);
  }

  __device__ Target target(int a, int64_t output, int bit) const {
    const Axis& axis = p_.axis[a];
    return {output * axis.y + bit * axis.band, output >= axis.bands};
  }

  __device__ void put(const Target& outer, const Target& inner, int band, float low, float high) const {
    if (!writes_) return;
    S* const to = to_ + outer.at + inner.at;
    const float both[2] = {low, high};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float value = both[n];
      if (p_.scale.data != nullptr) value = scaled(value, factor_[band + n], p_.divide);
      if (outer.zero || inner.zero || zero_) value = 0;
      to[n * p_.axis[kAxes - 1].band] = wavelet::stored<S>(value);
    }
  }

 private:
  const Params& p_;
  const bool pairs_;
  const S* const x_;
  S* const y_;
  const float* const factor_;

  int column_[2], weight_[2];
  S* to_;
  bool past_[2], any_past_, paired_, writes_, zero_;
};

// Whether a pair of samples that begins at an even one can be one access.
bool has_pairs(const Params& p) {
  bool even = reinterpret_cast<uintptr_t>(p.x) % static_cast<uintptr_t>(2 * size_of(p.dtype)) == 0;
  for (int a = 0; a + 1 < p.ndim; ++a) even = even && (p.axis[a].size == 1 || p.axis[a].x % 2 == 0);
  for (int d = 0; d < p.planes.dims; ++d) even = even && p.planes.stride[kX][d] % 2 == 0;
  return even;
}

template <class S>
void launch_all(const Params& p, cudaStream_t stream) {
  const int64_t first[kMaxSpatial] = {};
  const int64_t end[kMaxSpatial] = {p.axis[0].grid, p.axis[1].grid, p.axis[2].grid};
  wavelet::with_taps(p.ndim, p.stencil.length, [&]<int kAxes, int kL>() {
    wavelet::launch_march<Analysis<S, kAxes>, kAxes, kL>(p, first, end, has_pairs(p), stream);
  });
}

// ---- one axis at a time ---------------------------------------------------------------------------

// What the axis makes: [planes, 2**axis, *extents, group] pairs of results, at the end zeros too.
struct Extents {
  int64_t made[kMaxSpatial] = {};
};

Extents extents_of(const Params& p, int axis) {
  Extents e;
  const bool last = axis == p.ndim - 1;
  for (int d = 0; d < p.ndim; ++d)
    e.made[d] = d > axis ? p.axis[d].size : last ? p.axis[d].grid : p.axis[d].bands;
  return e;
}

// from: null: x. to: null: y.
template <class T, class Index>
__global__ void __launch_bounds__(kAxisThreads)
    one_axis(const Params p, const Extents extents, int axis, Index count, const T* from, T* to) {
  __shared__ wavelet::Weights<T> weights;
  weights.fill(p.stencil);
  __syncthreads();
  const Index index = static_cast<Index>(blockIdx.x) * kAxisThreads + threadIdx.x;
  if (index >= count) return;
  Position here = Position::of(index, 1 << axis, p.ndim, extents.made, p.group);
  const Axis& along = p.axis[axis];
  const int64_t k = here.at[axis];
  const bool last = axis == p.ndim - 1;
  bool zero = false;
#pragma unroll
  for (int d = 0; d < kMaxSpatial; ++d) zero = zero || (d <= axis && here.at[d] >= p.axis[d].bands);

  T result[2] = {};
  if (!zero) {
    here.at[axis] = 0;
    int64_t base = 0, step = 0;
    if (from == nullptr) {
      base = p.planes.offset(kX, here.plane) + here.element;
#pragma unroll
      for (int d = 0; d < kMaxSpatial; ++d)
        if (d < p.ndim) base += here.at[d] * p.axis[d].x;
      step = along.x;
    } else {
      int64_t read[kMaxSpatial];
#pragma unroll
      for (int d = 0; d < kMaxSpatial; ++d) read[d] = d < axis ? p.axis[d].bands : p.axis[d].size;
      base = here.offset(1 << axis, p.ndim, read, p.group);
      step = p.group;
#pragma unroll
      for (int d = 0; d < kMaxSpatial; ++d)
        if (d > axis && d < p.ndim) step *= p.axis[d].size;
    }
    const auto read = [&](int64_t i) {
      return from == nullptr ? load_as<T>(p.x, p.dtype, base + i * step) : from[base + i * step];
    };
    weights.sum(
        [&](int place, T& x) {
          const int64_t i = 2 * k - p.stencil.offset + place;
          if (0 <= i && i < along.size) {
            x = read(i);
            return true;
          }
          const Extension e = extend(i, along.size, p.edge);
          x = 0;
          for (int n = 0; n < e.count; ++n) x = fma_(static_cast<T>(e.weight[n]), read(e.at[n]), x);
          return e.count > 0 || last;  // the last axis counts nothing as 0, as on the CPU
        },
        result[0], result[1]);
    here.at[axis] = k;
  }

  int64_t scale = 0;
  if (last && p.scale.data != nullptr) scale = p.planes.offset(kScale, here.plane);
  for (int high = 0; high < 2; ++high) {
    Position there = here;
    there.band = 2 * here.band + high;
    if (!last) {
      to[there.offset(2 << axis, p.ndim, extents.made, p.group)] = result[high];
      continue;
    }
    int64_t at = p.planes.offset(kY, here.plane) + here.element + there.band * along.band;
#pragma unroll
    for (int d = 0; d < kMaxSpatial; ++d)
      if (d < p.ndim) at += here.at[d] * p.axis[d].y;
    T value = result[high];
    if (p.scale.data != nullptr && !zero)
      value =
          scaled(value, load_as<T>(p.scale.data, p.scale.dtype, scale + there.band * p.scale.band), p.divide);
    store_as<T>(p.y, p.dtype, at, value);
  }
}

template <class T>
void launch_axes(const Params& p, void* scratch, cudaStream_t stream) {
  static_assert(sizeof(Params) + sizeof(Extents) + 4 * sizeof(int64_t) <= 4096, "a kernel's arguments");
  const T* from = nullptr;
  T* to = static_cast<T*>(scratch);
  for (int axis = 0; axis < p.ndim; ++axis) {
    const Extents extents = extents_of(p, axis);
    const int64_t count = (p.planes.count * p.group * wavelet::product(extents.made, p.ndim)) << axis;
    T* const made = axis == p.ndim - 1 ? nullptr : to;
    const dim3 grid(blocks_for(count, kAxisThreads)), block(kAxisThreads);
    if (count <= kMaxInt32) {
      launch(&one_axis<T, uint32_t>, grid, block, 0, stream, p, extents, axis, static_cast<uint32_t>(count),
             from, made);
    } else {
      launch(&one_axis<T, int64_t>, grid, block, 0, stream, p, extents, axis, count, from, made);
    }
    from = made;
    if (made != nullptr) to += intermediate_numel(p, axis);
  }
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (takes_march(params)) {
    wavelet::with_float(params.dtype, [&]<class S>(S) { launch_all<S>(params, on); });
  } else if (params.dtype == DType::f64) {
    launch_axes<double>(params, scratch, on);
  } else {
    launch_axes<float>(params, scratch, on);
  }
}

}  // namespace fastdiff::dwt
