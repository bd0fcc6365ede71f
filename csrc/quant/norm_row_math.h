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

// What happens to a row. A value of its own: loops that store floats would read NormedRows again for each of
// them.
struct Changes {
  bool norm, weight, bias, scale_by, shift;
};

FASTDIFF_HD Changes changes_of(const NormedRows& rows) {
  return {rows.norm != Norm::none, rows.weight.data != nullptr, rows.bias.data != nullptr,
          rows.scale_by.data != nullptr, rows.shift.data != nullptr};
}

// y of x. The last four arguments give an element, or lanes, of a tensor, and are called only where it is
// there.
template <class V, class Weight, class Bias, class Scale, class Shift>
FASTDIFF_HD V modulated(const Changes& c, V mean, V rstd, V x, const Weight& weight, const Bias& bias,
                        const Scale& scale_by, const Shift& shift) {
  if (c.norm) x = mul(sub(x, mean), rstd);
  if (c.weight) x = mul(x, weight());
  if (c.bias) x = add(x, bias());
  if (c.scale_by) x = fma_(x, scale_by(), x);
  if (c.shift) x = add(x, shift());
  return x;
}

}  // namespace
}  // namespace fastdiff::quant
