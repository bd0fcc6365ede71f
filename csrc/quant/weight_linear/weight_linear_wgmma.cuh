// SPDX-License-Identifier: Apache-2.0
// Products of many rows of e4m3 on Hopper, behind the kernel that rounds them.
#pragma once

#include "quant/byte_tiles_wgmma.cuh"
#include "quant/weight_linear/weight_linear.h"

namespace fastdiff::weight_linear {

// Rows lie at quant::swizzled_place().
void launch_wgmma(const Params& params, cudaStream_t stream);

}  // namespace fastdiff::weight_linear
