// SPDX-License-Identifier: Apache-2.0
// The formula of laplacian_split, for one lane or several. The stencils are those of wavelet/pyramid.h.
#pragma once

#include "wavelet/laplacian_split/laplacian_split.h"

namespace fastdiff::laplacian_split {
namespace {

template <class V>
FASTDIFF_HD V detail(V whole, V expanded) {
  return sub(whole, expanded);
}

}  // namespace
}  // namespace fastdiff::laplacian_split
