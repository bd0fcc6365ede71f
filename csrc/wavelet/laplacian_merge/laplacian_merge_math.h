// SPDX-License-Identifier: Apache-2.0
// The formula of laplacian_merge, for one lane or several. The stencil is that of wavelet/pyramid.h.
#pragma once

#include "wavelet/laplacian_merge/laplacian_merge.h"

namespace fastdiff::laplacian_merge {
namespace {

template <class V>
FASTDIFF_HD V whole(V detail, V expanded) {
  return add(detail, expanded);
}

}  // namespace
}  // namespace fastdiff::laplacian_merge
