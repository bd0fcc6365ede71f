// SPDX-License-Identifier: Apache-2.0
// select_blocks on CUDA: a warp for each row. A lane reads no keys but its own, so that nothing waits between
// the passes but the warp's sums.
#include "attention/select_blocks/select_blocks_math.h"
#include "core/launch.cuh"

namespace fastdiff::select_blocks {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class N>
__device__ __forceinline__ N warp_sum(N x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
template <class K>
__device__ __forceinline__ K warp_max(K x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const K other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

template <class T>
class Row {
  using K = Key<T>;

 public:
  __device__ Row(const Params& p, K* keys, int64_t list, int64_t r)
      : p_(p), keys_(keys), lane_(static_cast<int>(threadIdx.x) % kWarp) {
    const int64_t b = list / p.heads, h = list % p.heads, at = p.scores.at(b, h, r);
    chosen_ = static_cast<uint8_t*>(p.chosen.data) + p.chosen.at(b, h, r);
    for (int64_t c = lane_; c < p.columns; c += kWarp)
      keys[c] = key_of(load_as<T>(p.scores.data, p.scores.dtype, at + c * p.scores.element));
  }

  __device__ K highest() const {
    K key = 0;
    for (int64_t c = lane_; c < p_.columns; c += kWarp) key = keys_[c] > key ? keys_[c] : key;
    return warp_max(key);
  }

  __device__ void weigh(T highest) {
    for (int64_t c = lane_; c < p_.columns; c += kWarp)
      keys_[c] = static_cast<K>(
          static_cast<int32_t>(weight_of(static_cast<float>(score_of<T>(keys_[c]) - highest))));
  }

  __device__ uint64_t count_from(K key) const {
    unsigned count = 0;
    for (int64_t c = lane_; c < p_.columns; c += kWarp) count += keys_[c] >= key;
    return warp_sum(count);
  }
  __device__ uint64_t sum_from(K key) const {
    unsigned long long sum = 0;
    for (int64_t c = lane_; c < p_.columns; c += kWarp) sum += keys_[c] >= key ? keys_[c] : 0;
    return warp_sum(sum);
  }

  // All above the threshold, and the first ones equal to it.
  __device__ void choose(K threshold, uint64_t ties) const {
    for (int64_t first = 0; first < p_.columns; first += kWarp) {
      const int64_t c = first + lane_;
      const bool there = c < p_.columns, tie = there && keys_[c] == threshold;
      const unsigned ballot = __ballot_sync(kAllLanes, tie);
      const auto before = static_cast<uint64_t>(__popc(ballot & ((1u << lane_) - 1)));
      if (there) chosen_[c * p_.chosen.element] = keys_[c] > threshold || (tie && before < ties);
      const auto taken = static_cast<uint64_t>(__popc(ballot));
      ties -= taken < ties ? taken : ties;
    }
  }

 private:
  const Params& p_;
  K* const keys_;
  uint8_t* chosen_;
  const int lane_;
};

__device__ uint64_t count_of(int64_t limit, int64_t columns) {
  if (limit >= 1) return static_cast<uint64_t>(limit < columns ? limit : columns);
  device_refusal("fastdiff::select_blocks: count must be at least 1");
  return 1;
}
__device__ double mass_of(double limit) {
  if (limit > 0 && limit <= 1) return limit;
  device_refusal("fastdiff::select_blocks: mass must be above 0 and at most 1");
  return 1;
}

// `scratch`: none where the keys fit into shared memory.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarps) select_rows(const Params p, Key<T>* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (n >= p.lists * p.rows) return;  // the whole warp
  Key<T>* const keys =
      scratch == nullptr ? dynamic_smem<Key<T>>() + warp * p.columns : scratch + n * p.columns;
  const int64_t list = n / p.rows;
  Row<T> row(p, keys, list, n % p.rows);
  const Limits& limits = p.limits;
  const int64_t limit = list / p.heads * limits.sample + list % p.heads * limits.head;
  if (p.by_mass()) {
    choose_by_mass<T>(row, mass_of(load_as<double>(limits.data, limits.dtype, limit)));
  } else {
    choose_by_count<T>(row, count_of(static_cast<const int64_t*>(limits.data)[limit], p.columns));
  }
}

template <class T>
void launch_as(const Params& p, void* scratch, cudaStream_t stream) {
  const size_t shared = cuda_scratch_bytes(p) > 0 ? 0 : kWarps * static_cast<size_t>(p.columns) * sizeof(T);
  launch(&select_rows<T>, dim3(blocks_for(p.lists * p.rows, kWarps)), dim3(kWarp * kWarps), shared, stream, p,
         static_cast<Key<T>*>(scratch));
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* on_stream) {
  const OnDevice on(device);
  const auto stream = static_cast<cudaStream_t>(on_stream);
  params.wide() ? launch_as<double>(params, scratch, stream) : launch_as<float>(params, scratch, stream);
}

}  // namespace fastdiff::select_blocks
