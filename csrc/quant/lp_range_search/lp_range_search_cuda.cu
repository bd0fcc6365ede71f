// SPDX-License-Identifier: Apache-2.0
// lp_range_search on CUDA: a block takes a chunk in shared memory through all candidates, 16 threads to a
// candidate; a thread's sum is one of the CPU's 16 lanes. Maxima meet in atomics, which have no order.
#include "core/walk.cuh"
#include "quant/lp_range_search/lp_range_search_math.h"

namespace fastdiff::lp_range_search {
namespace {

constexpr int kThreads = 256, kGroups = kThreads / kLanes;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kThreads >= kMostCandidates);

using Word = unsigned long long;

// What the kernels leave for each other.
struct Found {
  Word* peaks;  // [rows], the bits of max |x| as float64: NaN is above infinity
  int* signs;
  double* sums;  // [rows, chunks, candidates]

  __device__ Grid grid(const Params& p, int64_t row) const {
    return grid_of(p, *signs, bits_as<double>(static_cast<uint64_t>(peaks[row])));
  }
};

__global__ void __launch_bounds__(kThreads) clear(const Params p, const Found found) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n < p.rows) found.peaks[n] = 0;
  if (n == 0) *found.signs = 0;
}

template <class T>
__device__ T element(const Params& p, int64_t row, int64_t n) {
  return load_as<T>(p.x.data, p.x.dtype, row * p.x.sample_stride + offset_of(n, p.dims, p.size, p.x.stride));
}

template <class T>
__global__ void __launch_bounds__(kThreads) find_peaks(const Params p, const Found found) {
  __shared__ Word peaks[kThreads];
  __shared__ int signs[kThreads];
  const int64_t chunks = chunks_of(p), row = blockIdx.x / chunks, first = blockIdx.x % chunks * kChunk;
  const int own = static_cast<int>(threadIdx.x);
  Word peak = 0;
  int sign = 0;
  for (int e = own; e < kChunk && first + e < p.numel; e += kThreads) {
    const auto x = static_cast<double>(element<T>(p, row, first + e));
    const Word bits = bits_as<uint64_t>(abs_(x));
    if (bits > peak) peak = bits;
    sign |= (x < 0 ? kNegative : 0) | (x > 0 ? kPositive : 0);
  }
  peaks[own] = peak;
  signs[own] = sign;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own >= half) continue;
    if (peaks[own + half] > peaks[own]) peaks[own] = peaks[own + half];
    signs[own] |= signs[own + half];
  }
  if (own != 0) return;
  atomicMax(&found.peaks[row], peaks[0]);
  atomicOr(found.signs, signs[0]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) score(const Params p, const Found found) {
  __shared__ T x[kChunk];
  const int64_t chunks = chunks_of(p), row = blockIdx.x / chunks, first = blockIdx.x % chunks * kChunk;
  const Grid grid = found.grid(p, row);
  if (!is_searched(p, grid)) return;  // the whole block
  const int64_t rest = p.numel - first;
  const int count = rest < kChunk ? static_cast<int>(rest) : kChunk;
  const int whole = (count + kTurn - 1) / kTurn * kTurn;
  for (int e = static_cast<int>(threadIdx.x); e < whole; e += kThreads)
    x[e] = e < count ? element<T>(p, row, first + e) : T(0);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  const T lowest = static_cast<T>(grid.lowest), highest = static_cast<T>(grid.highest);
  for (int turn = 0; turn < p.candidates; turn += kGroups) {  // all threads, for the shuffles
    const int c = turn + group;
    const T inverse = inverse_of<T>(grid, c);
    T sum = T(0);
    for (int e = lane; e < whole; e += kTurn) {
      T of[4];
      for (int n = 0; n < 4; ++n) of[n] = error_of(p, x[e + n * kLanes], inverse, lowest, highest);
      sum = sum + ((of[0] + of[1]) + (of[2] + of[3]));
    }
    for (int half = kLanes / 2; half > 0; half /= 2)
      sum = sum + __shfl_down_sync(kAllLanes, sum, static_cast<unsigned>(half), kLanes);
    if (lane == 0 && c < p.candidates)
      found.sums[static_cast<int64_t>(blockIdx.x) * p.candidates + c] = static_cast<double>(sum);
  }
}

__global__ void __launch_bounds__(kThreads) choose_best(const Params p, const Found found) {
  __shared__ double total[kMostCandidates];
  const int64_t row = blockIdx.x, chunks = chunks_of(p);
  const Grid grid = found.grid(p, row);
  const int c = static_cast<int>(threadIdx.x);
  if (is_searched(p, grid) && c < p.candidates) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      sum = sum + found.sums[(row * chunks + chunk) * p.candidates + c];
    total[c] = sum;
  }
  __syncthreads();
  if (c == 0) choose(p, row, grid, [&](int n) { return total[n]; });
}

template <class T>
void launch_as(const Params& p, const Found& found, cudaStream_t stream) {
  const dim3 block(kThreads), rows(blocks_for(p.rows, 1)), chunks(blocks_for(p.rows * chunks_of(p), 1));
  launch(&clear, dim3(blocks_for(p.rows, kThreads)), block, 0, stream, p, found);
  launch(&find_peaks<T>, chunks, block, 0, stream, p, found);
  launch(&score<T>, chunks, block, 0, stream, p, found);
  launch(&choose_best, rows, block, 0, stream, p, found);
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on(device);
  auto* const peaks = static_cast<Word*>(scratch);
  const Found found{peaks, reinterpret_cast<int*>(peaks + params.rows),
                    reinterpret_cast<double*>(peaks + params.rows + 1)};
  if (params.wide) {
    launch_as<double>(params, found, static_cast<cudaStream_t>(stream));
  } else {
    launch_as<float>(params, found, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::lp_range_search
