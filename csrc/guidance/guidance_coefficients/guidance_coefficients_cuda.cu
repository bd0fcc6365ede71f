// SPDX-License-Identifier: Apache-2.0
// guidance_coefficients on CUDA: a block per sample. One thread finds the weights, all write the table.
#include "core/launch.cuh"
#include "guidance/guidance_coefficients/guidance_coefficients_math.h"

namespace fastdiff::guidance_coefficients {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) write_tables(const Params p) {
  __shared__ Weights w;
  const int64_t sample = blockIdx.x;
  const int64_t step = p.step ? *p.step : 0;
  if (step < 0 || step >= p.steps)
    device_refusal("fastdiff::guidance_coefficients: step is outside the table");
  if (threadIdx.x == 0) {
    w = weights(p, step, sample);
    if (p.latch) p.next_latch[sample * p.next_latch_stride] = w.latched;
  }
  __syncthreads();
  for (int64_t n = threadIdx.x; n < p.rows * p.columns; n += kThreads)
    write_entry<T>(p, step, sample, w, n / p.columns, n % p.columns);
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on_device(device);
  launch(params.is_double ? &write_tables<double> : &write_tables<float>, dim3(blocks_for(params.samples, 1)),
         dim3(kThreads), 0, static_cast<cudaStream_t>(stream), params);
}

}  // namespace fastdiff::guidance_coefficients
