// SPDX-License-Identifier: Apache-2.0
// int8_conv2d with the tiles of AMX.
#include "quant/int8_conv2d/int8_conv2d_gemm.h"
#include "quant/int8_tiles_amx.h"

namespace fastdiff::int8_conv2d {

template <>
void Cpu<kIsa>::run(const Params& params, const Team& team) {
  run_with<quant::MatrixTiles>(params, team);
}

}  // namespace fastdiff::int8_conv2d
