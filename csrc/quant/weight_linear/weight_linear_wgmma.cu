// SPDX-License-Identifier: Apache-2.0
// fp8_linear with many rows on Hopper: blocks of three warpgroups, quant/byte_tiles_wgmma.cuh.
#include "quant/epilogue.cuh"
#include "quant/weight_linear/weight_linear_wgmma.cuh"

namespace fastdiff::weight_linear {
namespace {

using namespace quant;

template <int kHalves>
__global__ void __launch_bounds__(kWideThreads, 1) multiply(const Params p, unsigned columns) {
#if FASTDIFF_SM90A
  const int64_t half = blockIdx.x / columns * kHalves, panel = blockIdx.x % columns * kWidePanels;
  const WideFactors factors{
      reinterpret_cast<const uint8_t*>(p.blocks), p.weight,     p.epilogue.rows, p.epilogue.slots / kPanel,
      (p.epilogue.inner + kPiece - 1) / kPiece,   p.panel_bytes};
  multiply_wide<float, kHalves>(factors, half, panel, [&](int r, int quad, const float* sums) {
    finish_quad(p.epilogue, half * kWideRows + r, panel * kPanel, quad, [&](int at, float (&h)[kQuad]) {
      for (int j = 0; j < kQuad; ++j) h[j] = sums[at * kQuad + j];
    });
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

}  // namespace fastdiff::weight_linear
