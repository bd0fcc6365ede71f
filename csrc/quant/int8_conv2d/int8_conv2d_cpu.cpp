// SPDX-License-Identifier: Apache-2.0
// int8_conv2d with the integer instructions of the baseline, AVX2 and AVX-512.
#include "quant/int8_conv2d/int8_conv2d_gemm.h"

namespace fastdiff::int8_conv2d {

template <>
void Cpu<kIsa>::run(const Params& params, const Team& team) {
  run_with<quant::LaneTiles>(params, team);
}

}  // namespace fastdiff::int8_conv2d
