// SPDX-License-Identifier: Apache-2.0
// The mean of a block: its tokens are added in their order, everywhere.
#pragma once

#include "attention/block_means/block_means.h"
#include "core/lanes.h"

namespace fastdiff::block_means {
namespace {

// The tokens of block r.
FASTDIFF_HD int64_t tokens_of(const Params& p, int64_t r) {
  const int64_t left = p.x.tokens - r * p.block;
  return left < p.block ? left : p.block;
}

template <class T>
FASTDIFF_HD T mean_of(T sum, int64_t tokens) {
  return div(sum, static_cast<T>(tokens));
}

}  // namespace
}  // namespace fastdiff::block_means
