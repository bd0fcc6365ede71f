// SPDX-License-Identifier: Apache-2.0
// Stands in for <cooperative_groups.h>: the thread block and its tiles.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

class thread_block {
 public:
  static void sync(simt::Site site = simt::Site::current()) { __syncthreads(site); }
  static unsigned thread_rank() { return static_cast<unsigned>(simt::machine.self->rank); }
  static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned num_threads() { return size(); }
  static dim3 group_index() { return blockIdx; }
  static dim3 thread_index() { return threadIdx; }
  static dim3 dim_threads() { return blockDim; }
};

inline thread_block this_thread_block() {
  return {};
}

// kSize neighbouring lanes of a warp.
template <unsigned kSize>
class thread_block_tile {
  static_assert(kSize >= 1 && kSize <= 32 && (kSize & (kSize - 1)) == 0,
                "tiles are powers of two up to a warp");

 public:
  static unsigned thread_rank() { return lane() % kSize; }
  static unsigned meta_group_rank() { return thread_block::thread_rank() / kSize; }
  static constexpr unsigned size() { return kSize; }
  static constexpr unsigned num_threads() { return kSize; }

  void sync(simt::Site site = simt::Site::current()) const { __syncwarp(mask(), site); }
  template <class T>
  T shfl(T value, int source, simt::Site site = simt::Site::current()) const {
    return __shfl_sync(mask(), value, source, kSize, site);
  }
  template <class T>
  T shfl_up(T value, unsigned delta, simt::Site site = simt::Site::current()) const {
    return __shfl_up_sync(mask(), value, delta, kSize, site);
  }
  template <class T>
  T shfl_down(T value, unsigned delta, simt::Site site = simt::Site::current()) const {
    return __shfl_down_sync(mask(), value, delta, kSize, site);
  }
  template <class T>
  T shfl_xor(T value, unsigned bits, simt::Site site = simt::Site::current()) const {
    return __shfl_xor_sync(mask(), value, static_cast<int>(bits), kSize, site);
  }
  int any(int predicate, simt::Site site = simt::Site::current()) const {
    return __any_sync(mask(), predicate, site);
  }
  int all(int predicate, simt::Site site = simt::Site::current()) const {
    return __all_sync(mask(), predicate, site);
  }
  unsigned ballot(int predicate, simt::Site site = simt::Site::current()) const {
    return __ballot_sync(mask(), predicate, site) >> (lane() / kSize * kSize);
  }

 private:
  static unsigned lane() { return static_cast<unsigned>(simt::machine.self->lane()); }
  static unsigned mask() {
    return static_cast<unsigned>((uint64_t{1} << kSize) - 1) << (lane() / kSize * kSize);
  }
};

template <unsigned kSize>
thread_block_tile<kSize> tiled_partition(const thread_block&) {
  return {};
}

}  // namespace cooperative_groups
