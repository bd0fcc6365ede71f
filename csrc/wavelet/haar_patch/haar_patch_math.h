// SPDX-License-Identifier: Apache-2.0
// The transform of one axis, and the places of the bands.
//
// To bands: scale, then the axes w, h, t. To pixels: scale, then t, the sum of the first frames where they
// are added up (first to last), h, w.
#pragma once

#include "core/lanes.h"
#include "wavelet/haar_patch/haar_patch.h"

namespace fastdiff::haar_patch {
namespace {

// v[f] = sum_a (-1)^popcount(f & a) v[a] over kPatch values that are kStride apart, lowest bit first: the
// levels of the wavelet packet. Recursive and always inlined, so that compilers leave no loop around single
// additions and no array in memory.
template <int kPatch, int kStride, int kBit = 1, class V>
[[gnu::always_inline]] FASTDIFF_HD void transform(V* v) {
  if constexpr (kBit < kPatch) {
    for (int n = 0; n < kPatch / 2; ++n) {
      const int a = (n / kBit * 2 * kBit + n % kBit) * kStride;  // without the bit
      const V low = v[a], high = v[a + kBit * kStride];
      v[a] = add(low, high);
      v[a + kBit * kStride] = sub(low, high);
    }
    transform<kPatch, kStride, 2 * kBit>(v);
  }
}

// The number of a band, which times C begins its channels. A level is a digit of 8, the last one the highest:
// it holds the high-pass bits of t, h and w.
template <int kPatch>
FASTDIFF_HD constexpr int band_of(int t, int h, int w) {
  int band = 0;
  for (int level = 0; (1 << level) < kPatch; ++level)
    band |= ((t >> level & 1) << 2 | (h >> level & 1) << 1 | (w >> level & 1)) << 3 * level;
  return band;
}

// body.template operator()<p>() with the size of a patch
template <class Body>
void with_patch(int patch, const Body& body) {
  switch (patch) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 4:
      return body.template operator()<4>();
    default:
      return body.template operator()<8>();
  }
}

}  // namespace
}  // namespace fastdiff::haar_patch
