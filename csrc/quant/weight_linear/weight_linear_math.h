// SPDX-License-Identifier: Apache-2.0
// From packed words to the numbers that are multiplied with, for lanes of any kind: a lane is a column.
#pragma once

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

}  // namespace
}  // namespace fastdiff::weight_linear
