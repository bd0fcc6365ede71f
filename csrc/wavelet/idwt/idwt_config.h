// SPDX-License-Identifier: Apache-2.0
// Which kernels idwt takes on CUDA, and the memory that goes with them.
#pragma once

#include "wavelet/idwt/idwt.h"
#include "wavelet/march.h"

namespace fastdiff::idwt {

// Rows of memory, and nothing to add from past the ends. Nothing here depends on the result, scale, threshold
// or approximation: who asks for the size of the scratch memory may not have them yet.
inline bool takes_march(const Params& p) {
  const wavelet::Axis& last = p.axis[p.ndim - 1];
  const bool inverse = p.edge == wavelet::Edge::zero || p.edge == wavelet::Edge::circular;
  return wavelet::marches(p.dtype, p.ndim, p.stencil.length, last.bands) && inverse && last.grid > 1 &&
         last.y == 1;
}

// Elements of what the axis leaves for the next one: [planes, 2 bands for each axis to come, *dimensions,
// group].
inline int64_t intermediate_numel(const Params& p, int axis) {
  int64_t n = p.planes.count * p.group << (p.ndim - 1 - axis);
  for (int d = 0; d < p.ndim; ++d) n *= d <= axis ? p.axis[d].size : p.axis[d].bands;
  return n;
}

}  // namespace fastdiff::idwt
