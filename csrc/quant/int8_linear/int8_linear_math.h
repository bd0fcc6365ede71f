// SPDX-License-Identifier: Apache-2.0
// The scale and zero point that a caller gives for a row.
#pragma once

#include "quant/int8_linear/int8_linear.h"
#include "quant/int8_rows.h"

namespace fastdiff::int8_linear {
namespace {

FASTDIFF_HD quant::RowScale given_scale(const Params& p, int64_t m) {
  return quant::given_scale(p.x_scale, p.x_zero_point, m, p.is_signed);
}

}  // namespace
}  // namespace fastdiff::int8_linear
