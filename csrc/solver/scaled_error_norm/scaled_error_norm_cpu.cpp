// SPDX-License-Identifier: Apache-2.0
// scaled_error_norm on the CPU, compiled once per ISA: one pass over the inputs.
#include "core/reduce_cpu.h"
#include "solver/scaled_error_norm/scaled_error_norm_math.h"

namespace fastdiff::scaled_error_norm {
namespace {

template <class T>
void run_as(const Params& p, void* scratch, const Team& team) {
  reduce::each_sample<T, kSums>(p.source, SquaredError<T>(p), Root(p), scratch, team);
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.compute_double) {
    run_as<double>(params, scratch, team);
  } else {
    run_as<float>(params, scratch, team);
  }
}

}  // namespace fastdiff::scaled_error_norm
