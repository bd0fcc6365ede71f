// SPDX-License-Identifier: Apache-2.0
// dynamic_threshold on CUDA.
//
//   one_block   small samples: a block finds its sample's threshold in shared memory and writes the result.
//   large samples: one launch per digit, in which all blocks add their counts to the sample's bins in global
//   memory, and one for the result. A kernel starts from the bins of the launches before it: every block
//   walks them anew, which costs less than another launch. Nothing waits for the host.
//
// Counts are integers and their sums do not depend on the order of atomics, so the result does not either.
#include <algorithm>

#include "core/walk.cuh"
#include "solver/dynamic_threshold/dynamic_threshold_math.h"

namespace fastdiff::dynamic_threshold {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockThreads = 512;  // of one_block
constexpr int64_t kBlocksPerProcessor = 8;
constexpr int64_t kMaxSamplesPerGrid = 65535;  // gridDim.y
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- elements, four at a time ---------------------------------------------------------------------

// Which operands are dense and aligned, so that four elements are one access.
struct Access {
  bool search, result;
};

template <class T>
__device__ __forceinline__ int load_four(const Params& p, const Access& access, int64_t sample, int64_t first,
                                         T (&x)[kQuad]) {
  const int count = static_cast<int>(min(p.numel - first, int64_t{kQuad}));
  const int64_t base = sample * p.search.sample_stride;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (access.search && count == kQuad) {
      load_quad(p.x.data, p.x.dtype, base + first, x);
      return count;
    }
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count)
      x[j] = load_as<T>(p.x.data, p.x.dtype,
                        base + offset_of(first + j, p.search.dims, p.search.size, p.search.stride));
  return count;
}

template <class T>
__device__ void write_result(const Params& p, const Access& access, int64_t sample, double s, int64_t thread,
                             int64_t threads) {
  const Scale<T> scale(s);
  const int64_t x_base = sample * p.x.sample_stride, y_base = sample * p.y.sample_stride;
  for (int64_t first = kQuad * thread; first < p.numel; first += kQuad * threads) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (access.result && first + kQuad <= p.numel) {
        T x[kQuad];
        load_quad(p.x.data, p.x.dtype, x_base + first, x);
        for (int j = 0; j < kQuad; ++j) x[j] = scale(x[j]);
        store_quad(p.y.data, p.y.dtype, y_base + first, x);
        continue;
      }
    }
    for (int64_t i = first; i < min(first + kQuad, p.numel); ++i) {
      const T value = load_as<T>(p.x.data, p.x.dtype, x_base + offset_of(i, p.dims, p.size, p.x.stride));
      store_as<T>(p.y.data, p.y.dtype, y_base + offset_of(i, p.dims, p.size, p.y.stride), scale(value));
    }
  }
}

// ---- one digit ------------------------------------------------------------------------------------

template <class T>
struct Bins {
  unsigned count[kBins];
  Count above;
  unsigned has_nan;
};

template <class T>
__device__ void clear(Bins<T>& bins) {
  for (int b = threadIdx.x; b < kBins; b += blockDim.x) bins.count[b] = 0;
  if (threadIdx.x == 0) {
    bins.above = 0;
    bins.has_nan = 0;
  }
  __syncthreads();
}

// Adds this block's part of a sample: from quad `thread` on, every `threads`-th.
template <class T>
__device__ void tally(const Params& p, const Access& access, int64_t sample, int digit,
                      const Search<T>& search, int64_t thread, int64_t threads, Bins<T>& bins) {
  using Key = typename Magnitude<T>::Key;
  const Key wanted = Search<T>::head(search.prefix, digit);
  Count above = 0;
  bool has_nan = false;
  for (int64_t first = kQuad * thread; first < p.numel; first += kQuad * threads) {
    T x[kQuad];
    const int count = load_four(p, access, sample, first, x);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (j >= count) break;
      const Key key = key_of(x[j]), head = Search<T>::head(key, digit);
      has_nan |= key > Magnitude<T>::kInfinity;
      if (head == wanted) {
        atomicAdd(&bins.count[Search<T>::bin(key, digit)], 1u);
      } else if (head > wanted) {
        above = max(above, ~static_cast<Count>(key));
      }
    }
  }
  for (int lane = kWarp / 2; lane > 0; lane /= 2) above = max(above, __shfl_xor_sync(kAllLanes, above, lane));
  if (threadIdx.x % kWarp == 0 && above != 0) atomicMax(&bins.above, above);
  if (__any_sync(kAllLanes, has_nan) && threadIdx.x % kWarp == 0) atomicOr(&bins.has_nan, 1u);
  __syncthreads();
}

struct Picked {
  int bin, next;  // where the order statistic is, and the next bin that has a key; kBins: none
  long long before, count;
  long long warp_sum[kBlockThreads / kWarp];
};

// Finds the bin of the `rank`-th key. Every thread of the block calls it and gets the answer in `picked`.
template <class C>
__device__ void pick(const C* count, int64_t rank, Picked& picked) {
  const int own = kBins / static_cast<int>(blockDim.x), first = own * static_cast<int>(threadIdx.x);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  long long sum = 0;
  for (int b = first; b < first + own; ++b) sum += static_cast<long long>(count[b]);
  long long through = sum;  // of this thread's bins and all before them
  for (int step = 1; step < kWarp; step *= 2) {
    const long long lower = __shfl_up_sync(kAllLanes, through, step);
    if (lane >= step) through += lower;
  }
  if (threadIdx.x == 0) picked.next = kBins;
  if (lane == kWarp - 1) picked.warp_sum[warp] = through;
  __syncthreads();
  for (int w = 0; w < warp; ++w) through += picked.warp_sum[w];
  if (through - sum <= rank && rank < through) {
    long long before = through - sum;
    int b = first;
    while (before + static_cast<long long>(count[b]) <= rank) before += static_cast<long long>(count[b++]);
    picked.bin = b;
    picked.before = before;
    picked.count = static_cast<long long>(count[b]);
  }
  __syncthreads();
  for (int b = first + own - 1; b >= first; --b)
    if (b > picked.bin && count[b] != 0) atomicMin(&picked.next, b);
  __syncthreads();
}

// Goes on by one digit. `above`: as in Found. Returns the order statistic after the one searched for, which
// means something at the last digit only.
template <class T>
__device__ typename Magnitude<T>::Key advance(Search<T>& search, int digit, const Picked& picked,
                                              Count above) {
  Search<T> other = search;
  const bool same = search.rank + 1 < picked.before + picked.count;
  const int next = same ? picked.bin : picked.next;
  if (next < kBins) other.found(digit, next, 0);
  search.found(digit, picked.bin, picked.before);
  return next < kBins ? other.prefix : static_cast<typename Magnitude<T>::Key>(~above);
}

// ---- kernels --------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kBlockThreads) one_block(const Params p, const Access access) {
  __shared__ Bins<T> bins;
  __shared__ Picked picked;
  const int64_t sample = blockIdx.x;
  Search<T> search{0, position(p.ratio, p.numel).below};
  typename Magnitude<T>::Key above = 0;
  bool has_nan = false;
  for (int digit = 0; digit < digits_of<T>(p.x.dtype); ++digit) {
    clear(bins);
    tally(p, access, sample, digit, search, threadIdx.x, blockDim.x, bins);
    pick(bins.count, search.rank, picked);
    above = advance(search, digit, picked, bins.above);
    has_nan |= bins.has_nan != 0;
    __syncthreads();
  }
  // Every element has been read: the result may be x itself.
  write_result<T>(p, access, sample, threshold<T>(p, search.prefix, above, has_nan), threadIdx.x, blockDim.x);
}

// The search of a sample as far as the digits below `digits` have been counted.
template <class T>
__device__ typename Magnitude<T>::Key replay(const Found<T>& found, int digits, Search<T>& search,
                                             Picked& picked) {
  typename Magnitude<T>::Key above = 0;
  for (int digit = 0; digit < digits; ++digit) {
    pick(found.count[digit], search.rank, picked);
    above = advance(search, digit, picked, found.above);
    __syncthreads();
  }
  return above;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    count_digit(const Params p, const Access access, Found<T>* found, int digit, int64_t first_sample) {
  __shared__ Bins<T> bins;
  __shared__ Picked picked;
  const int64_t sample = first_sample + blockIdx.y;
  Found<T>& own = found[sample];
  Search<T> search{0, position(p.ratio, p.numel).below};
  replay(own, digit, search, picked);
  clear(bins);
  tally(p, access, sample, digit, search, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
        static_cast<int64_t>(gridDim.x) * blockDim.x, bins);
  for (int b = threadIdx.x; b < kBins; b += blockDim.x)
    if (bins.count[b] != 0) atomicAdd(&own.count[digit][b], static_cast<Count>(bins.count[b]));
  if (threadIdx.x != 0) return;
  const bool is_last = digit == digits_of<T>(p.x.dtype) - 1;
  if (is_last && bins.above != 0) atomicMax(&own.above, bins.above);
  if (digit == 0 && bins.has_nan != 0) atomicMax(&own.has_nan, Count{1});
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_all(const Params p, const Access access, const Found<T>* found, int64_t first_sample) {
  __shared__ Picked picked;
  const int64_t sample = first_sample + blockIdx.y;
  const Found<T>& own = found[sample];
  Search<T> search{0, position(p.ratio, p.numel).below};
  const auto above = replay(own, digits_of<T>(p.x.dtype), search, picked);
  const double s = threshold<T>(p, search.prefix, above, own.has_nan != 0);
  write_result<T>(p, access, sample, s, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
                  static_cast<int64_t>(gridDim.x) * blockDim.x);
}

// ---- launches -------------------------------------------------------------------------------------

Access access_of(const Params& p) {
  const auto fits = [&p](const Operand& x) {
    return has_quads(x.data, x.dtype, p.dims, x.stride, p.samples, x.sample_stride);
  };
  const Walk& w = p.search;
  return {has_quads(p.x.data, p.x.dtype, w.dims, w.stride, p.samples, w.sample_stride),
          fits(p.x) && fits(p.y)};
}

template <class T>
void launch_one_block(const Params& p, cudaStream_t stream) {
  launch(&one_block<T>, dim3(blocks_for(p.samples, 1)), dim3(kBlockThreads), 0, stream, p, access_of(p));
}

template <class T>
void launch_many_blocks(const Params& p, Found<T>* found, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(found, 0, static_cast<size_t>(p.samples) * sizeof(Found<T>), stream),
             "dynamic_threshold");
  const Access access = access_of(p);
  const int64_t turns = (p.numel + kQuad * kThreads - 1) / (kQuad * kThreads);
  const int64_t wanted = kBlocksPerProcessor * multiprocessors("dynamic_threshold");
  for (int64_t first = 0; first < p.samples; first += kMaxSamplesPerGrid) {
    const int64_t rows = std::min(p.samples - first, kMaxSamplesPerGrid);
    const dim3 grid(static_cast<unsigned>(std::clamp(wanted / rows, int64_t{1}, turns)),
                    static_cast<unsigned>(rows));
    for (int digit = 0; digit < digits_of<T>(p.x.dtype); ++digit)
      launch(&count_digit<T>, grid, dim3(kThreads), 0, stream, p, access, found, digit, first);
    launch(&write_all<T>, grid, dim3(kThreads), 0, stream, p, access, static_cast<const Found<T>*>(found),
           first);
  }
}

template <class T>
void launch_samples(const Params& p, void* scratch, cudaStream_t stream) {
  if (p.numel <= kOneBlockNumel) {
    launch_one_block<T>(p, stream);
  } else {
    launch_many_blocks(p, static_cast<Found<T>*>(scratch), stream);
  }
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (params.compute_double) {
    launch_samples<double>(params, scratch, on);
  } else {
    launch_samples<float>(params, scratch, on);
  }
}

}  // namespace fastdiff::dynamic_threshold
