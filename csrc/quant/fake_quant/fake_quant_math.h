// SPDX-License-Identifier: Apache-2.0
// The formulas of fake_quant, for lanes of any kind.
#pragma once

#include "quant/affine_math.h"
#include "quant/fake_quant/fake_quant.h"

namespace fastdiff::fake_quant {
namespace {

struct Formula {
  static constexpr bool kReadsInt8 = false, kWritesInt8 = false;
  static constexpr const char* kRefusal = "fastdiff::fake_quant: step must be a row of the tables";
};

struct Forward : Formula {
  static constexpr bool kHasGradient = false;
  template <class V>
  FASTDIFF_HD V operator()(const quant::Point<V>& p) const {
    const V q = quant::within(p.low, p.high, quant::on_grid(p.x, p.inverse, p.zero));
    return mul(sub(q, p.zero), p.scale);
  }
};

struct Backward : Formula {
  static constexpr bool kHasGradient = true;
  template <class V>
  FASTDIFF_HD V operator()(const quant::Point<V>& p) const {
    const V q = quant::on_grid(p.x, p.inverse, p.zero);
    // NaN and infinities are in no range: their difference is no zero.
    return if_zero(sub(quant::within(p.low, p.high, q), q), p.gradient, sub(p.low, p.low));
  }
};

}  // namespace
}  // namespace fastdiff::fake_quant
