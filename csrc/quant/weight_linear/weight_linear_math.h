// SPDX-License-Identifier: Apache-2.0
// From packed words to the numbers that are multiplied with, for lanes of any kind: a lane is a column. And
// how rows are rounded to e4m3.
#pragma once

#include "core/e4m3.h"
#include "core/nibbles.h"
#include "quant/weight_linear/weight_linear.h"

namespace fastdiff::weight_linear {
namespace {

// The k-th of eight neighbours along K, as stored; word(i) gives the i-th word of the lanes.
template <Scheme kScheme, int k, class Words>
FASTDIFF_HD auto stored(const Words& word) {
  if constexpr (kScheme == Scheme::int8) {
    return signed_byte<k % 4>(word(k / 4));
  } else if constexpr (kScheme == Scheme::int4) {
    return signed_nibble<2 * (k % 4) + k / 4>(word(0));
  } else if constexpr (kScheme == Scheme::fp8) {
    return e4m3_of_byte<k % 4>(word(k / 4));
  } else {
    using U = decltype(word(0));
    if constexpr (k % 2 == 0) return as_float(shift_left<16>(word(k / 2)));
    if constexpr (k % 2 == 1) return as_float(and_(word(k / 2), splat<U>(0xffff0000u)));
  }
}

// Before it is scaled.
template <bool kHasZero, class V>
FASTDIFF_HD V weight_of(V q, V zero) {
  return kHasZero ? sub(q, zero) : q;
}

// The sums of a group of int4, or of a block along K, joined to those of the elements before.
template <Scheme kScheme, class V>
FASTDIFF_HD V joined(V sum, V scale, V before, bool is_first) {
  if constexpr (kScheme == Scheme::int4) return is_first ? mul(sum, scale) : fma_(sum, scale, before);
  return is_first ? sum : add(before, sum);
}

// x is about scale q, with q = nearest_e4m3(x inverse).
struct RowScale {
  float scale, inverse;
};

// Of row m, whose magnitudes are so large at most, unless the caller gives it. No scale is so small that its
// inverse overflows.
FASTDIFF_HD RowScale scale_of_row(const Params& p, int64_t m, float largest) {
  if (p.x_scale.data != nullptr) {
    const float scale = static_cast<const float*>(p.x_scale.data)[m * p.x_scale.element];
    return {scale, p.x.dtype == DType::u8 ? 1.0f : 1.0f / scale};  // bytes are q as they are
  }
  const float range = largest < 0x1p-100f ? 0x1p-100f : largest;
  return {range / kLargestE4m3, kLargestE4m3 / range};
}

// An element of x as the caller has it, a byte of e4m3 as its number.
FASTDIFF_HD float given(const Params& p, int64_t at) {
  if (p.x.dtype != DType::u8) return load_as<float>(p.x.data, p.x.dtype, at);
  const uint8_t byte = static_cast<const uint8_t*>(p.x.data)[at];
  return (byte & kNanE4m3) == kNanE4m3 ? bits_as<float>(0x7fc00000u) : e4m3_of_byte<0>(uint32_t{byte});
}

}  // namespace
}  // namespace fastdiff::weight_linear
