// SPDX-License-Identifier: Apache-2.0
// For which filters there are fused kernels, see march.cuh: the desks have to know how much memory a launch
// needs.
#pragma once

#include "wavelet/filter_bank.h"

namespace fastdiff::wavelet {

inline constexpr int kMarchTaps = 20;
inline constexpr int kMarchVolumeTaps = 8;  // of three axes: more do not fit into the registers

// float64 serves references and checks of gradients, which do not need it.
inline bool marches(DType dtype, int ndim, int length) {
  return dtype != DType::f64 && length <= (ndim == kMaxSpatial ? kMarchVolumeTaps : kMarchTaps);
}

}  // namespace fastdiff::wavelet
