// SPDX-License-Identifier: Apache-2.0
// All cases in one program. usage: broken CASE correct|broken SEED...
// Exit status: 0 all results are right, 1 one is wrong, 2 the emulator refused (message on stderr), others: a
// sanitizer.
#include <cstdlib>
#include <cstring>

#include "async_copy.cu"
#include "barrier.cu"
#include "missing_syncthreads.cu"
#include "missing_syncwarp.cu"
#include "shared_bounds.cu"
#include "shuffle.cu"
#include "tail.cu"
#include "uninitialised.cu"
#include "warpgroup.cu"

constexpr Case kCases[] = {
    {"missing_syncthreads", missing_syncthreads::run},
    {"missing_second_barrier", missing_syncthreads::run_steps},
    {"missing_syncwarp", missing_syncwarp::run},
    {"tail_read", tail::run_read},
    {"tail_write", tail::run_write},
    {"static_shared_bounds", shared_bounds::run_static},
    {"dynamic_shared_bounds", shared_bounds::run_dynamic},
    {"shuffle_half", shuffle::run_half},
    {"shuffle_other_mask", shuffle::run_both},
    {"shuffle_lane_outside", shuffle::run_outside},
    {"mixed_collectives", shuffle::run_mixed},
    {"barrier_early_exit", barrier::run_exit},
    {"barrier_per_branch", barrier::run_branch},
    {"barrier_against_shuffle", barrier::run_shuffle},
    {"async_copy_no_wait", async_copy::run_wait},
    {"async_copy_wait_too_late", async_copy::run_order},
    {"uninitialised_count", uninitialised::run_count},
    {"uninitialised_block", uninitialised::run_fill},
    {"bulk_copy_no_wait", warpgroup::run_copy},
    {"wgmma_no_wait", warpgroup::run_product},
    {"wgmma_rows_overwritten", warpgroup::run_overwritten},
    {"wgmma_no_fence", warpgroup::run_fence},
    {"wgmma_strayed_lanes", warpgroup::run_strayed},
    {"bulk_copy_unseen_barrier", warpgroup::run_unseen},
};

const Case* find(const char* name) {
  for (const Case& c : kCases)
    if (std::strcmp(c.name, name) == 0) return &c;
  return nullptr;
}

int main(int argc, char** argv) {
  const Case* found = argc >= 4 ? find(argv[1]) : nullptr;
  if (found == nullptr) return 3;
  const bool fixed = std::strcmp(argv[2], "correct") == 0;
  try {
    for (int i = 3; i < argc; ++i) {
      simt::machine.set_seed(std::strtoull(argv[i], nullptr, 10));
      if (!found->run(fixed)) return 1;
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
