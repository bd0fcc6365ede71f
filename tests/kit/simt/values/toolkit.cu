// SPDX-License-Identifier: Apache-2.0
// The toolkit's headers for small floats, under g++, beside our own conversions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "core/dtype.h"
#include "core/launch.cuh"
#include "exported.h"

namespace {

__global__ void round_all(const float* x, uint16_t* toolkit, uint16_t* ours, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  toolkit[2 * i] = __half_as_ushort(__float2half_rn(x[i]));
  toolkit[2 * i + 1] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
  ours[2 * i] = fastdiff::to_half(x[i]).bits;
  ours[2 * i + 1] = fastdiff::to_bfloat16(x[i]).bits;
}

}  // namespace

// x[n] -> toolkit[n, 2], ours[n, 2]: the bits of x in fp16 and in bf16
EXPORT(run_round_all, (const float* x, uint16_t* toolkit, uint16_t* ours, int n)) {
  return error_of([=] {
    fastdiff::launch(round_all, fastdiff::blocks_for(n, 128), 128, 0, nullptr, x, toolkit, ours, n);
  });
}
