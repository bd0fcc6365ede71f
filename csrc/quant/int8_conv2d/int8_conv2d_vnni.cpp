// SPDX-License-Identifier: Apache-2.0
// int8_conv2d with the dot products of AVX-VNNI and AVX512-VNNI.
#include "quant/int8_conv2d/int8_conv2d_gemm.h"

namespace fastdiff::int8_conv2d {

template <>
void Cpu<kIsa>::run(const Params& params, const Team& team) {
  run_with<quant::LaneTiles>(params, team);
}

}  // namespace fastdiff::int8_conv2d
