// SPDX-License-Identifier: Apache-2.0
// int8_linear with many rows on Hopper: blocks of three warpgroups, quant/byte_tiles_wgmma.cuh.
#include "quant/int8_linear/int8_linear_cuda.cuh"

namespace fastdiff::int8_linear {
namespace {

using namespace quant;

template <int kHalves>
__global__ void __launch_bounds__(kWideThreads, 1) multiply(const Params p, unsigned columns) {
#if FASTDIFF_SM90A
  const int64_t half = blockIdx.x / columns * kHalves, panel = blockIdx.x % columns * kWidePanels;
  const WideFactors factors{p.q,
                            reinterpret_cast<const char*>(p.weight),
                            p.epilogue.rows,
                            p.epilogue.slots / kPanel,
                            p.pieces,
                            p.pieces * kPieceBytes};
  multiply_wide<int, kHalves>(factors, half, panel, [&](int r, int quad, const int32_t* sums) {
    finish_sums(p, half * kWideRows + r, panel * kPanel, quad, sums);
  });
#else
  device_refusal("the kernel for sm_90a was not built for this device");
#endif
}

}  // namespace

void launch_wgmma(const Params& params, cudaStream_t stream) {
  launch_wide(params.epilogue.rows, params.epilogue.slots, [&](auto halves, dim3 grid, unsigned columns) {
    constexpr int kHalves = halves;
    launch(multiply<kHalves>, grid, dim3(kWideThreads), kWideSmem<kHalves>, stream, params, columns);
  });
}

}  // namespace fastdiff::int8_linear
