// SPDX-License-Identifier: Apache-2.0
// The formula of dequantize, for lanes of any kind.
#pragma once

#include "quant/affine_math.h"
#include "quant/dequantize/dequantize.h"

namespace fastdiff::dequantize {
namespace {

struct Formula {
  static constexpr bool kReadsInt8 = true, kWritesInt8 = false, kHasGradient = false;
  static constexpr const char* kRefusal = "fastdiff::dequantize: step must be a row of the tables";
  template <class V>
  FASTDIFF_HD V operator()(const quant::Point<V>& p) const {
    return mul(sub(p.x, p.zero), p.scale);
  }
};

}  // namespace
}  // namespace fastdiff::dequantize
