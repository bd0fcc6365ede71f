// SPDX-License-Identifier: Apache-2.0
// Which kernels dwt takes on CUDA, and the memory that goes with them.
#pragma once

#include "wavelet/dwt/dwt.h"
#include "wavelet/march.h"

namespace fastdiff::dwt {

// Rows of memory, and extended samples that are one sample or none. Nothing here depends on the result or on
// scale: who asks for the size of the scratch memory may not have them yet.
inline bool takes_march(const Params& p) {
  const wavelet::Axis& last = p.axis[p.ndim - 1];
  return wavelet::marches(p.dtype, p.ndim, p.stencil.length, last.size) && !wavelet::extrapolates(p.edge) &&
         last.size > 1 && last.x == 1;
}

// Elements of what the axis leaves for the next one: [planes, 2 bands for each axis, *dimensions, group].
inline int64_t intermediate_numel(const Params& p, int axis) {
  int64_t n = p.planes.count * p.group << (axis + 1);
  for (int d = 0; d < p.ndim; ++d) n *= d <= axis ? p.axis[d].bands : p.axis[d].size;
  return n;
}

}  // namespace fastdiff::dwt
