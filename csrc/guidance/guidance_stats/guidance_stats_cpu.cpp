// SPDX-License-Identifier: Apache-2.0
// guidance_stats on the CPU, compiled once per ISA: one pass over the inputs.
#include "core/reduce_cpu.h"
#include "guidance/guidance_stats/guidance_stats_math.h"

namespace fastdiff::guidance_stats {

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  with_features(params, [&]<class T, int N>() {
    reduce::each_sample<T, sums_of(N)>(source_of<N>(params), Moments<T, N>(params), Row<N>(params), scratch,
                                       team);
  });
}

}  // namespace fastdiff::guidance_stats
