// SPDX-License-Identifier: Apache-2.0
// The mistakes: a bulk copy that nobody waits for, sums of wgmma that are read before the wait, rows that are
// overwritten before it, a product without a fence, one of lanes that have not met since they waited, and a
// barrier that bulk copies cannot see yet.
#include "case.h"
#include "core/ptx_sm90.cuh"

namespace warpgroup {

namespace ptx = fastdiff::ptx;

constexpr int kThreads = 128, kRowBytes = 64, kBytes = 128 * kRowBytes;

enum class Mistake { none, no_copy_wait, no_product_wait, overwritten, no_fence, strayed, unseen };

// sums [64, 128] of ones with rows of threes in the first half of x, which then make room for those of the
// second.
template <Mistake kMistake>
__global__ void multiply(const uint8_t* x, int* sums, uint8_t* second) {
  __shared__ __align__(8) uint64_t landed;
  uint8_t* const begin = fastdiff::dynamic_smem<uint8_t>();
  uint8_t* const rows = begin + 1024 - ptx::shared_address(begin) % 1024;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&landed, 1);
    if constexpr (kMistake != Mistake::unseen) ptx::mbarrier_init_done();
  }
  __syncthreads();
  const auto copy = [&](int half) {
    if (threadIdx.x != 0) return;
    ptx::mbarrier_expect(&landed, kBytes);
    for (int at = 0; at < kBytes; at += kBytes / 8)
      ptx::bulk_copy(rows + at, x + half * kBytes + at, kBytes / 8, &landed);
  };
  copy(0);
  if constexpr (kMistake != Mistake::no_copy_wait) ptx::mbarrier_wait(&landed, false);
  if constexpr (kMistake != Mistake::strayed) __syncwarp();
  int sum[64] = {};
  if constexpr (kMistake != Mistake::no_fence) ptx::wgmma_fence();
  ptx::wgmma_m64n128k32(sum, {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u}, ptx::swizzled_rows(rows),
                        true);
  ptx::wgmma_commit();
  if constexpr (kMistake != Mistake::no_product_wait && kMistake != Mistake::overwritten)
    ptx::wgmma_wait<0>();
  __syncthreads();
  copy(1);
  ptx::mbarrier_wait(&landed, true);
  if constexpr (kMistake == Mistake::overwritten) ptx::wgmma_wait<0>();
  for (int i = 0; i < 64; ++i) sums[threadIdx.x * 64 + i] = sum[i];
  second[threadIdx.x] = rows[threadIdx.x];
}

bool run(void (*kernel)(const uint8_t*, int*, uint8_t*)) {
  std::vector<uint8_t> x(2 * kBytes, 3), second(kThreads);
  std::fill(x.begin() + kBytes, x.end(), uint8_t{5});
  std::vector<int> sums(64 * kThreads);
  fastdiff::launch(kernel, 1, kThreads, kBytes + 1024, nullptr, x.data(), sums.data(), second.data());
  return sums == std::vector<int>(sums.size(), 3 * 32) && second == std::vector<uint8_t>(kThreads, 5);
}
bool run_copy(bool fixed) {
  return run(fixed ? multiply<Mistake::none> : multiply<Mistake::no_copy_wait>);
}
bool run_product(bool fixed) {
  return run(fixed ? multiply<Mistake::none> : multiply<Mistake::no_product_wait>);
}
bool run_overwritten(bool fixed) {
  return run(fixed ? multiply<Mistake::none> : multiply<Mistake::overwritten>);
}
bool run_fence(bool fixed) {
  return run(fixed ? multiply<Mistake::none> : multiply<Mistake::no_fence>);
}
bool run_strayed(bool fixed) {
  return run(fixed ? multiply<Mistake::none> : multiply<Mistake::strayed>);
}
bool run_unseen(bool fixed) {
  return run(fixed ? multiply<Mistake::none> : multiply<Mistake::unseen>);
}

}  // namespace warpgroup
