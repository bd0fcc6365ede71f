// SPDX-License-Identifier: Apache-2.0
// For which filters there are fused kernels, see march.cuh: the desks have to know how much memory a launch
// needs.
#pragma once

#include "wavelet/filter_bank.h"

namespace fastdiff::wavelet {

inline constexpr int kMarchTaps = 20;
inline constexpr int kMarchVolumeTaps = 8;  // of three axes: more do not fit into the registers

// `row`: elements of the last dimension, which are numbered in 32 bits. float64 serves references and checks
// of gradients, which do not need it.
inline bool marches(DType dtype, int ndim, int length, int64_t row) {
  return row < (int64_t{1} << 31) && dtype != DType::f64 &&
         length <= (ndim == kMaxSpatial ? kMarchVolumeTaps : kMarchTaps);
}

}  // namespace fastdiff::wavelet
