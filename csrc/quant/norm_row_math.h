// SPDX-License-Identifier: Apache-2.0
// The arithmetic of norm_row.h, for lanes of any kind.
#pragma once

#include "core/lanes.h"
#include "quant/norm_row.h"

namespace fastdiff::quant {
namespace {

// Of one row: norm(x) = (x - mean) * rstd.
struct Statistics {
  float mean = 0, rstd = 1;
};

FASTDIFF_HD float rstd_of(float squares, int64_t columns, float eps) {
  return div(1.0f, sqrt_(add(div(squares, static_cast<float>(columns)), eps)));
}

template <class V>
FASTDIFF_HD V square_of_difference(V x, V mean, V sum) {
  const V e = sub(x, mean);
  return fma_(e, e, sum);
}

// y of x. The last four arguments give an element, or lanes, of a tensor, and are called only where it is
// there.
template <class V, class Weight, class Bias, class Scale, class Shift>
FASTDIFF_HD V modulated(const Rows& rows, const Statistics& s, V x, const Weight& weight, const Bias& bias,
                        const Scale& scale_by, const Shift& shift) {
  if (rows.norm != Norm::none) x = mul(sub(x, splat<V>(s.mean)), splat<V>(s.rstd));
  if (rows.weight.data != nullptr) x = mul(x, weight());
  if (rows.bias.data != nullptr) x = add(x, bias());
  if (rows.scale_by.data != nullptr) x = fma_(x, scale_by(), x);
  if (rows.shift.data != nullptr) x = add(x, shift());
  return x;
}

}  // namespace
}  // namespace fastdiff::quant
