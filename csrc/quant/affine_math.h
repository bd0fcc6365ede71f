// SPDX-License-Identifier: Apache-2.0
// What the formulas of affine.h are given of an element, or of lanes.
#pragma once

#include "quant/affine.h"
#include "quant/rounding.h"

namespace fastdiff::quant {
namespace {

template <class V>
struct Point {
  V x, gradient;
  V scale, inverse, zero, low, high;
};

// A formula of a room:
//   struct Formula {
//     static constexpr bool kReadsInt8, kWritesInt8, kHasGradient;
//     template <class V> V operator()(const Point<V>& p) const;
//   };

}  // namespace
}  // namespace fastdiff::quant
