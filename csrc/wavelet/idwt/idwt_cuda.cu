// SPDX-License-Identifier: Apache-2.0
// idwt on CUDA: all dimensions in one kernel, or one axis at a time.
//
//   march     rows of memory and filters of usual length, where nothing past the ends has to be added; see
//             march.cuh
//   one_axis  all else: any strides, channels innermost, long filters, float64, adjoints of transforms that
//             continue the signal. y and the intermediates are read and written once per axis.
#include "wavelet/axis.cuh"
#include "wavelet/idwt/idwt_config.h"
#include "wavelet/idwt/idwt_math.h"
#include "wavelet/march.cuh"

namespace fastdiff::idwt {
namespace {

using wavelet::Axis;
using wavelet::extend;
using wavelet::Extension;
using wavelet::kAxisThreads;
using wavelet::kMaxSpatial;
using wavelet::kMaxTaps;
using wavelet::modulo;
using wavelet::Position;

// The numbers of one plane's bands.
template <class T>
__device__ T number_of(const wavelet::Numbers& numbers, int64_t at, int band) {
  return load_as<T>(numbers.data, numbers.dtype, at + band * numbers.band);
}

// ---- march: the bands in turns are the sequence, pair r = j + L/2 - 1 of samples is output j -------

template <class S, int kAxes>
class Synthesis {
 public:
  using Params = idwt::Params;
  using Storage = S;

  // The coefficients at one place of an outer axis, of one of its bands.
  struct Line {
    int64_t at = 0;     // in y
    int64_t apart = 0;  // in the approximation
    bool is = true;     // false: there are none

    __device__ bool there() const { return is; }
    __device__ float turned(float x) const { return x; }
  };
  // Where an outer axis puts an output.
  struct Target {
    int64_t at = 0;
    bool there = true;  // false: it is no sample of the signal
  };

  static constexpr int kBands = 1 << kAxes;
  static constexpr int kNumbers = 2 * kBands;  // that the warp keeps in shared memory

  __device__ Synthesis(const Params& p, bool pairs, int64_t plane, float* numbers)
      : p_(p),
        pairs_(pairs),
        y_(static_cast<const S*>(p.y) + p.planes.offset(kY, plane)),
        x_(static_cast<S*>(p.x) + p.planes.offset(kX, plane)),
        factor_(numbers),
        threshold_(numbers + kBands) {
    if (p.approximation != nullptr)
      apart_ = static_cast<const S*>(p.approximation) + p.planes.offset(kApproximation, plane);
    const int band = threadIdx.x % wavelet::kWarp;
    if (band < kBands) {
      if (p.scale.data != nullptr)
        numbers[band] = number_of<float>(p.scale, p.planes.offset(kScale, plane), band);
      if (p.threshold.data != nullptr)
        numbers[kBands + band] = number_of<float>(p.threshold, p.planes.offset(kThreshold, plane), band);
    }
    __syncwarp();
  }

  // The lane that holds pair `first` plus its number, of outputs up to `end`.
  template <int kL>
  __device__ void stand_at(int64_t first, int64_t end) {
    const Axis& axis = p_.axis[kAxes - 1];
    const int lane = threadIdx.x % wavelet::kWarp;
    const int64_t pair = first + lane;
    const Line column = line(kAxes - 1, pair, 0);
    column_ = static_cast<int>(column.at);
    is_ = column.is;
    any_past_ = __any_sync(wavelet::kAllLanes, !is_) != 0;
    const int64_t sample = sample_of(pair, 0);
    const bool mine = lane < wavelet::kStrip<kL> && pair < end;
    writes_[0] = mine && 0 <= sample && sample < axis.size;
    writes_[1] = mine && 0 <= sample + 1 && sample + 1 < axis.size;
    paired_ = pairs_ && writes_[0] && writes_[1] && sample % 2 == 0;
    to_ = x_ + sample * axis.x;
  }

  __device__ Line line(int a, int64_t pair, int bit) const {
    const Axis& axis = p_.axis[a];
    int64_t k = pair;
    if (p_.edge == wavelet::Edge::circular) k = modulo(k, axis.bands);
    const bool is = 0 <= k && k < axis.bands;
    if (!is) k = 0;  // somewhere in memory
    return {k * axis.y + bit * axis.band, k * p_.approximation_stride[a], is};
  }

  __device__ void fetch(const Line& outer, const Line& inner, int band, S (&raw)[2]) const {
    const S* const low = y_ + outer.at + inner.at + column_;
    if (band == 0 && apart_ != nullptr) {
      raw[0] = apart_[outer.apart + inner.apart + column_ * p_.approximation_stride[kAxes - 1]];
    } else {
      raw[0] = low[0];
    }
    raw[1] = low[p_.axis[kAxes - 1].band];
  }
  __device__ float value(S raw, int band) const {
    float x = wavelet::loaded(raw);
    if (p_.scale.data != nullptr) x = scaled(x, factor_[band], p_.divide);
    if (p_.threshold.data != nullptr) x = shrunk(x, threshold_[band], p_.hard);
    return x;
  }

  __device__ void pad(float (&row)[2]) const {
    if (any_past_ && !is_) row[0] = row[1] = 0;
  }

  __device__ Target target(int a, int64_t output, int bit) const {
    const int64_t sample = sample_of(output, bit);
    return {sample * p_.axis[a].x, 0 <= sample && sample < p_.axis[a].size};
  }

  __device__ void put(const Target& outer, const Target& inner, int, float low, float high) const {
    if (!outer.there || !inner.there) return;
    S* const to = to_ + outer.at + inner.at;
    if (paired_) return wavelet::store_pair(to, wavelet::stored<S>(low), wavelet::stored<S>(high));
    if (writes_[0]) to[0] = wavelet::stored<S>(low);
    if (writes_[1]) to[p_.axis[kAxes - 1].x] = wavelet::stored<S>(high);
  }

 private:
  __device__ int64_t sample_of(int64_t output, int bit) const {
    return 2 * (output + p_.stencil.length / 2 - 1) + bit - p_.offset;
  }

  const Params& p_;
  const bool pairs_;
  const S* const y_;
  const S* apart_ = nullptr;
  S* const x_;
  const float *const factor_, *const threshold_;

  int column_;
  S* to_;
  bool is_, any_past_, writes_[2], paired_;
};

// Whether a pair of samples that begins at an even one can be one access.
bool has_pairs(const Params& p) {
  bool even = p.axis[p.ndim - 1].x == 1 &&
              reinterpret_cast<uintptr_t>(p.x) % static_cast<uintptr_t>(2 * size_of(p.dtype)) == 0;
  for (int a = 0; a + 1 < p.ndim; ++a) even = even && (p.axis[a].size == 1 || p.axis[a].x % 2 == 0);
  for (int d = 0; d < p.planes.dims; ++d) even = even && p.planes.stride[kX][d] % 2 == 0;
  return even;
}

template <class S>
void launch_all(const Params& p, cudaStream_t stream) {
  int64_t first[kMaxSpatial] = {}, end[kMaxSpatial] = {};
  for (int a = 0; a < p.ndim; ++a) {
    first[a] = first_pair(p) - (p.stencil.length / 2 - 1);
    end[a] = first[a] + pairs_of(p, p.axis[a]);
  }
  wavelet::with_taps(p.ndim, p.stencil.length, [&]<int kAxes, int kL>() {
    wavelet::launch_march<Synthesis<S, kAxes>, kAxes, kL>(p, first, end, has_pairs(p), stream);
  });
}

// ---- one axis at a time ---------------------------------------------------------------------------

// Which samples past the ends belong to which within: three for each of them, by rising place. In shared
// memory.
template <class T>
struct Folds {
  int64_t at[3 * 2 * kMaxTaps];  // -1: none
  T weight[3 * 2 * kMaxTaps];
  int left, count;

  // All threads of the block call it; a barrier has to follow.
  __device__ void fill(const Params& p, const Axis& axis) {
    const int before = folds(p) ? p.offset : 0;
    const int64_t past = 2 * (axis.bands - 1) + p.stencil.length - p.offset - axis.size;
    const int all = before + (folds(p) && past > 0 ? static_cast<int>(past) : 0);
    for (int n = threadIdx.x; n < all; n += kAxisThreads) {
      const Extension e = extend(n < before ? n - before : axis.size + n - before, axis.size, p.edge);
      for (int m = 0; m < 3; ++m) {
        at[3 * n + m] = m < e.count ? e.at[m] : -1;
        weight[3 * n + m] = static_cast<T>(e.weight[m]);
      }
    }
    if (threadIdx.x != 0) return;
    left = before;
    count = 3 * all;
  }
  // Where the sample is that number `n` adds.
  __device__ int64_t place(int n, int64_t size) const {
    return n / 3 < left ? n / 3 - left : size + n / 3 - left;
  }
};

// What the axis makes: [planes, bands of the axes to come, *extents, group] pairs of samples.
struct Extents {
  int64_t made[kMaxSpatial] = {};
};

// from: null: y. to: null: x.
template <class T, class Index>
__global__ void __launch_bounds__(kAxisThreads)
    one_axis(const Params p, const Extents extents, int axis, Index count, const T* from, T* to) {
  __shared__ wavelet::Weights<T> weights;
  __shared__ Folds<T> past;
  const Axis& along = p.axis[axis];
  weights.fill(p.stencil);
  past.fill(p, along);
  __syncthreads();
  const Index index = static_cast<Index>(blockIdx.x) * kAxisThreads + threadIdx.x;
  if (index >= count) return;
  const int bands = 1 << (p.ndim - 1 - axis);  // of the axes to come
  Position here = Position::of(index, bands, p.ndim, extents.made, p.group);
  const int64_t first = 2 * (first_pair(p) + here.at[axis]) - p.offset;  // sample
  const bool last = axis == p.ndim - 1;

  // The coefficients of this axis' two bands.
  here.at[axis] = 0;
  int64_t base = 0, step = along.y, band_step = along.band, apart = 0;
  T factor[2] = {}, threshold[2] = {};
  if (from == nullptr) {
    base = p.planes.offset(kY, here.plane) + here.element + here.band * p.axis[p.ndim - 1].band;
    apart = p.planes.offset(kApproximation, here.plane);
#pragma unroll
    for (int d = 0; d < kMaxSpatial; ++d)
      if (d < p.ndim) {
        base += here.at[d] * p.axis[d].y;
        apart += here.at[d] * p.approximation_stride[d];
      }
    for (int bit = 0; bit < 2; ++bit) {
      const int band = bit * bands + here.band;
      if (p.scale.data != nullptr)
        factor[bit] = number_of<T>(p.scale, p.planes.offset(kScale, here.plane), band);
      if (p.threshold.data != nullptr)
        threshold[bit] = number_of<T>(p.threshold, p.planes.offset(kThreshold, here.plane), band);
    }
  } else {
    int64_t read[kMaxSpatial];
#pragma unroll
    for (int d = 0; d < kMaxSpatial; ++d) read[d] = d < axis ? p.axis[d].size : p.axis[d].bands;
    Position low = here;  // bands in the order of this axis' and then of those to come
    low.plane = 2 * here.plane;
    base = low.offset(bands, p.ndim, read, p.group);
    step = p.group;
    band_step = bands * p.group;
#pragma unroll
    for (int d = 0; d < kMaxSpatial; ++d)
      if (d < p.ndim) {
        if (d > axis) step *= read[d];
        band_step *= read[d];
      }
  }
  const auto read = [&](int64_t k, int bit) {
    if (from != nullptr) return from[base + bit * band_step + k * step];
    const bool elsewhere = bit == 0 && here.band == 0 && p.approximation != nullptr;
    T x = elsewhere ? load_as<T>(p.approximation, p.dtype, apart + k * p.approximation_stride[axis])
                    : load_as<T>(p.y, p.dtype, base + bit * band_step + k * step);
    if (p.scale.data != nullptr) x = scaled(x, factor[bit], p.divide);
    if (p.threshold.data != nullptr) x = shrunk(x, threshold[bit], p.hard);
    return x;
  };
  const auto sum = [&](int64_t r, T& even, T& odd) {
    weights.sum(
        [&](int place, T& x) {
          int64_t k = r - p.stencil.length / 2 + 1 + place / 2;
          if (p.edge == wavelet::Edge::circular) k = modulo(k, along.bands);
          const bool there = 0 <= k && k < along.bands;
          x = there ? read(k, place % 2) : T(0);
          return there || last;  // the last axis counts nothing as 0, as on the CPU
        },
        even, odd);
  };

  T result[2];
  sum((first + p.offset) / 2, result[0], result[1]);
  for (int bit = 0; bit < 2; ++bit) {
    const int64_t sample = first + bit;
    if (sample < 0 || sample >= along.size) continue;
    for (int n = 0; n < past.count; ++n) {
      if (past.at[n] != sample) continue;
      const int64_t place = past.place(n, along.size) + p.offset;
      T other[2];
      sum(place / 2, other[0], other[1]);
      result[bit] = fma_(past.weight[n], place % 2 == 0 ? other[0] : other[1], result[bit]);
    }
    here.at[axis] = sample;
    if (!last) {
      int64_t written[kMaxSpatial];
#pragma unroll
      for (int d = 0; d < kMaxSpatial; ++d) written[d] = d <= axis ? p.axis[d].size : p.axis[d].bands;
      to[here.offset(bands, p.ndim, written, p.group)] = result[bit];
      continue;
    }
    int64_t at = p.planes.offset(kX, here.plane) + here.element;
#pragma unroll
    for (int d = 0; d < kMaxSpatial; ++d)
      if (d < p.ndim) at += here.at[d] * p.axis[d].x;
    store_as<T>(p.x, p.dtype, at, result[bit]);
  }
}

template <class T>
void launch_axes(const Params& p, void* scratch, cudaStream_t stream) {
  static_assert(sizeof(Params) + sizeof(Extents) + 4 * sizeof(int64_t) <= 4096, "a kernel's arguments");
  const T* from = nullptr;
  T* to = static_cast<T*>(scratch);
  for (int axis = 0; axis < p.ndim; ++axis) {
    Extents extents;
    for (int d = 0; d < p.ndim; ++d)
      extents.made[d] = d < axis ? p.axis[d].size : d == axis ? pairs_of(p, p.axis[d]) : p.axis[d].bands;
    const int64_t count = (p.planes.count * p.group * wavelet::product(extents.made, p.ndim))
                          << (p.ndim - 1 - axis);
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

}  // namespace fastdiff::idwt
