// SPDX-License-Identifier: Apache-2.0
// What dwt and idwt have in common about bands: their factors, and the strips into which the CPU cuts planes.
#pragma once

#include "core/lanes.h"

namespace fastdiff::wavelet {
namespace {

template <class V>
FASTDIFF_HD V scaled(V value, V factor, bool divide) {
  return divide ? div(value, factor) : mul(value, factor);
}

inline constexpr int64_t kRegister = 16;  // elements that a row may be read too far

// Elements of a strip's band: as many as let its rows stay in the first-level cache and, with three axes, the
// frame between the first and the others in the second-level one; but no fewer than each strip reads besides.
inline int64_t strip_elements(int64_t frame_bytes_per_element, int64_t length, int64_t group) {
  constexpr int64_t kMost = 2048, kLeast = 32, kFrameBytes = 256 * 1024;
  if (frame_bytes_per_element == 0) return kMost;
  const int64_t besides = length * group;
  const int64_t least = besides > kLeast ? besides : kLeast;
  const int64_t fitting = (kFrameBytes / frame_bytes_per_element - besides) / 2;
  return fitting < least ? least : fitting < kMost ? fitting : kMost;
}

}  // namespace
}  // namespace fastdiff::wavelet
