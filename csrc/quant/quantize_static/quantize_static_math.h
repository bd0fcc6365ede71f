// SPDX-License-Identifier: Apache-2.0
// The formula of quantize_static, for lanes of any kind, and where a row's scale is.
#pragma once

#include "quant/affine_math.h"
#include "quant/norm_row_math.h"
#include "quant/quantize_static/quantize_static.h"

namespace fastdiff::quantize_static {
namespace {

struct Formula {
  static constexpr bool kReadsInt8 = false, kWritesInt8 = true, kHasGradient = false;
  static constexpr const char* kRefusal = "fastdiff::quantize_static: step must be a row of the tables";
  template <class V>
  FASTDIFF_HD V operator()(const quant::Point<V>& p) const {
    // What is no number becomes the zero point, the int8 of 0.
    return quant::within(p.low, p.high, number_or(quant::on_grid(p.x, p.inverse, p.zero), p.zero));
  }
};

// Where the row's entry of `step` is.
FASTDIFF_HD int64_t step_of_row(const Params& p, int64_t row) {
  return p.step.data == nullptr ? 0 : static_cast<const int64_t*>(p.step.data)[p.rows.at(p.step, row)];
}

FASTDIFF_HD quant::Point<float> point_of_step(const quant::Affine& a, int64_t step) {
  const float scale = load_as<float>(a.scale.data, a.scale.dtype, step * a.scale_row);
  const float zero = static_cast<float>(a.zero_at(step * a.zero_row));
  return {0.0f, 0.0f, scale, div(1.0f, scale), zero, a.low, a.high};
}

}  // namespace
}  // namespace fastdiff::quantize_static
