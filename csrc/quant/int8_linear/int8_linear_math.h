// SPDX-License-Identifier: Apache-2.0
// The scale and zero point that a caller gives for a row.
#pragma once

#include "quant/int8_linear/int8_linear.h"
#include "quant/int8_rows.h"

namespace fastdiff::int8_linear {
namespace {

FASTDIFF_HD quant::RowScale given_scale(const Params& p, int64_t m) {
  const float scale = static_cast<const float*>(p.x_scale.data)[m * p.x_scale.element];
  const bool is_affine = p.x_zero_point.data != nullptr;
  const int32_t zero =
      is_affine ? static_cast<const int32_t*>(p.x_zero_point.data)[m * p.x_zero_point.element] : 0;
  return quant::static_scale(scale, zero, is_affine, p.is_signed);
}

}  // namespace
}  // namespace fastdiff::int8_linear
