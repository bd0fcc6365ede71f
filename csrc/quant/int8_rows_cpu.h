// SPDX-License-Identifier: Apache-2.0
// A row of float32 as bytes with a scale and a zero point. For CPU files.
#pragma once

#include <algorithm>

#include "core/dots.h"
#include "quant/int8_rows.h"
#include "quant/panels.h"
#include "quant/rows_cpu.h"

namespace fastdiff::quant {
namespace {

inline RowScale dynamic_scale(const float* x, int64_t count, bool is_signed) {
  float least = 0.0f, greatest = 0.0f;
  widen_range(x, count, least, greatest);
  return dynamic_scale(least, greatest, is_signed);
}

// q + offset for a row, of which the n-th 64 go to bytes + n step; the last of them are filled up, with what
// does not matter. Returns the sum of q. Of a row with NaN the scale becomes NaN and q the zero point.
inline int32_t write_bytes(const float* x, int64_t count, RowScale& s, int offset, uint8_t* bytes,
                           int64_t step) {
  using L = Lanes<float>;
  using V = L::V;
  using U = L::U;
  const uint32_t plus = static_cast<uint32_t>(s.zero_point + offset) - as_bits(kRoundingUnit);
  const int64_t pieces = (count + kPiece - 1) / kPiece;
  U total = splat<U>(0u);
  V rest = splat<V>(0.0f);
  alignas(64) float last[kPiece] = {};
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const float* from = x + piece * kPiece;
    if (const int64_t there = count - piece * kPiece; there < kPiece) {
      std::copy_n(from, there, last);
      from = last;
    }
    for (int64_t k = 0; k < kPiece; k += L::width) {
      const V v = scaled(L::load(from + k), s);
      rest = fma_(v, splat<V>(0.0f), rest);  // NaN once any is
      const U q = add(rounded_bits(v), splat<U>(plus));
      total = add(total, q);
      Dots::store_bytes(bytes + piece * step + k, q);
    }
  }
  alignas(64) uint32_t totals[L::width];
  alignas(64) float rests[L::width];
  Dots::store(totals, total), L::store(rests, rest);
  uint32_t sum = 0;
  float nan = 0.0f;
  for (int l = 0; l < L::width; ++l) sum += totals[l], nan += rests[l];
  const auto zero = static_cast<uint32_t>(s.zero_point);
  if (nan != 0.0f) {
    s.scale = nan;
    for (int64_t piece = 0; piece < pieces; ++piece)
      std::fill_n(bytes + piece * step, kPiece, static_cast<uint8_t>(s.zero_point + offset));
    return static_cast<int32_t>(zero * static_cast<uint32_t>(count));
  }
  // Without the offset, and without what filled up the last piece: zeros, as they are clamped.
  const uint32_t fill = rounded_bits(scaled(0.0f, s)) + zero - as_bits(kRoundingUnit);
  return static_cast<int32_t>(sum - static_cast<uint32_t>(pieces * kPiece) * static_cast<uint32_t>(offset) -
                              static_cast<uint32_t>(pieces * kPiece - count) * fill);
}

}  // namespace
}  // namespace fastdiff::quant
