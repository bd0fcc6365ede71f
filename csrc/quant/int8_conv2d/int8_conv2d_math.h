// SPDX-License-Identifier: Apache-2.0
// How a sample of an image is quantised, beside quant/int8_rows.h.
#pragma once

#include "quant/int8_conv2d/int8_conv2d.h"

namespace fastdiff::int8_conv2d {
namespace {

// q of 0, which is what pixels around the image are: the zero point, where the range of q has it.
FASTDIFF_HD int32_t padding_of(const quant::RowScale& s) {
  return static_cast<int32_t>(at_most(s.highest, at_least(s.lowest, 0.0f))) + s.zero_point;
}

// Of sample b, by its range or by what the caller gave.
FASTDIFF_HD quant::RowScale scale_of(const Params& p, int64_t b, float least, float greatest) {
  return p.finds_range() ? quant::dynamic_scale(least, greatest, p.is_signed)
                         : quant::given_scale(p.x_scale, p.x_zero_point, b, p.is_signed);
}

}  // namespace
}  // namespace fastdiff::int8_conv2d
