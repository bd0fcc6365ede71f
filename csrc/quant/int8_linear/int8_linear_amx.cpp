// SPDX-License-Identifier: Apache-2.0
// int8_linear with the tiles of AMX.
#include "quant/int8_linear/int8_linear_gemm.h"
#include "quant/int8_tiles_amx.h"

namespace fastdiff::int8_linear {

template <>
void Cpu<kIsa>::run(const Params& params, const Team& team) {
  run_with<quant::MatrixTiles>(params, team);
}

}  // namespace fastdiff::int8_linear
