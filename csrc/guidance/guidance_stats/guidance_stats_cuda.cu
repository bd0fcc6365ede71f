// SPDX-License-Identifier: Apache-2.0
// guidance_stats on CUDA: the kernels of core/reduce.cuh with this formula.
#include "core/reduce.cuh"
#include "guidance/guidance_stats/guidance_stats_math.h"

namespace fastdiff::guidance_stats {

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  with_features(params, [&]<class T, int N>() {
    reduce::each_sample<T, sums_of(N)>(source_of<N>(params), Moments<T, N>(params), Row<N>(params), scratch,
                                       on);
  });
}

}  // namespace fastdiff::guidance_stats
