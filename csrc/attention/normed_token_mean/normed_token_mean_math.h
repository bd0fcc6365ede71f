// SPDX-License-Identifier: Apache-2.0
// How the sums of normed_token_mean are divided: so many tokens at a time, whatever the number of threads.
#pragma once

#include "attention/normed_token_mean/normed_token_mean.h"
#include "core/lanes.h"

namespace fastdiff::normed_token_mean {
namespace {

inline constexpr int kChunk = 64;  // tokens whose sum is one row of the scratch memory

FASTDIFF_HD int64_t chunks_of(const Params& p) {
  return (p.tokens + kChunk - 1) / kChunk;
}

// A mean of normed tokens with its modulation.
template <class T>
FASTDIFF_HD T modulated(const Params& p, int64_t b, int64_t d, T mean) {
  const auto number = [&](const Matrix& m) {
    return load_as<T>(m.data, m.dtype, b * m.sample + d * m.column);
  };
  if (p.scale.data != nullptr) mean = fma_(mean, number(p.scale), mean);
  if (p.shift.data != nullptr) mean = add(mean, number(p.shift));
  return mean;
}

}  // namespace
}  // namespace fastdiff::normed_token_mean
