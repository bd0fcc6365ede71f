// SPDX-License-Identifier: Apache-2.0
// list_blocks on CUDA: a block of threads for each list. Its warps count the blocks of rows, the offsets are
// the running sums of the counts, and then warps write the entries of rows.
#include "attention/list_blocks/list_blocks_math.h"
#include "core/launch.cuh"

namespace fastdiff::list_blocks {
namespace {

constexpr int kThreads = 512, kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

class List {
 public:
  __device__ List(const Params& p, int64_t list)
      : p_(p),
        list_(list),
        offsets_(p.offsets.data + p.offsets_at(list)),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarp) {}

  __device__ void count_rows() const {
    for (int64_t r = thread_ / kWarp; r < p_.rows; r += kWarps) {
      int count = 0;
      for (int64_t first = 0; first < p_.columns; first += kWarp)
        count += __popc(__ballot_sync(kAllLanes, kind(r, first + lane_) != 0));
      if (lane_ == 0) offsets_[(r + 1) * p_.offsets.step] = count;
    }
  }

  // Counts become offsets. `sums`: shared memory, one for each warp. Returns the end of the last row.
  __device__ int64_t add_up(int (&sums)[kWarps]) const {
    int64_t begin = list_ * p_.room();
    if (thread_ == 0) offsets_[0] = static_cast<int32_t>(begin);
    for (int64_t first = 0; first < p_.rows; first += kThreads) {
      const int64_t r = first + thread_;
      int sum = r < p_.rows ? offsets_[(r + 1) * p_.offsets.step] : 0;
      for (int step = 1; step < kWarp; step *= 2) {
        const int before = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(step));
        if (lane_ >= step) sum += before;
      }
      __syncthreads();  // the sums of the turn before have been read
      if (lane_ == kWarp - 1) sums[thread_ / kWarp] = sum;
      __syncthreads();
      int before = 0, all = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (w < thread_ / kWarp) before += sums[w];
        all += sums[w];
      }
      if (r < p_.rows) offsets_[(r + 1) * p_.offsets.step] = static_cast<int32_t>(begin + before + sum);
      begin += all;
    }
    return begin;
  }

  __device__ void write_rows() const {
    for (int64_t r = thread_ / kWarp; r < p_.rows; r += kWarps) {
      int64_t at = offsets_[r * p_.offsets.step];
      for (int64_t first = 0; first < p_.columns; first += kWarp) {
        const int64_t c = first + lane_;
        const uint8_t own = kind(r, c);
        const unsigned there = __ballot_sync(kAllLanes, own != 0);
        if (own != 0)
          write(at + __popc(there & ((1u << lane_) - 1)), static_cast<int32_t>(c),
                mask_of(own, (list_ * p_.rows + r) * p_.columns + c));
        at += __popc(there);
      }
    }
  }

  __device__ void write_rest(int64_t begin) const {
    for (int64_t n = begin + thread_; n < (list_ + 1) * p_.room(); n += kThreads) write(n, 0, -1);
  }

 private:
  __device__ uint8_t kind(int64_t r, int64_t c) const {
    if (c >= p_.columns) return 0;
    return static_cast<const uint8_t*>(
        p_.kinds.data)[p_.kinds.at(list_ / p_.heads, list_ % p_.heads, r) + c * p_.kinds.element];
  }
  __device__ void write(int64_t at, int32_t column, int32_t mask) const {
    p_.found.data[at * p_.found.step] = column;
    if (p_.masks.data != nullptr) p_.masks.data[at * p_.masks.step] = mask;
  }

  const Params& p_;
  const int64_t list_;
  int32_t* const offsets_;
  const int thread_, lane_;
};

__global__ void __launch_bounds__(kThreads) write_list(const Params p) {
  __shared__ int sums[kWarps];
  const List list(p, blockIdx.x);
  list.count_rows();
  __syncthreads();
  const int64_t end = list.add_up(sums);
  __syncthreads();
  list.write_rows();
  list.write_rest(end);
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on(device);
  launch(&write_list, dim3(blocks_for(params.lists, 1)), dim3(kThreads), 0, static_cast<cudaStream_t>(stream),
         params);
}

}  // namespace fastdiff::list_blocks
