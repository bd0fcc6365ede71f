// SPDX-License-Identifier: Apache-2.0
// scaled_error_norm on CUDA: the kernels of core/reduce.cuh with this formula.
#include "core/reduce.cuh"
#include "solver/scaled_error_norm/scaled_error_norm_math.h"

namespace fastdiff::scaled_error_norm {

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  const Root root(params);
  if (params.compute_double) {
    reduce::each_sample<double, kSums>(params.source, SquaredError<double>(params), root, scratch, on);
  } else {
    reduce::each_sample<float, kSums>(params.source, SquaredError<float>(params), root, scratch, on);
  }
}

}  // namespace fastdiff::scaled_error_norm
