// SPDX-License-Identifier: Apache-2.0
// The memory of a thread, which desks have to know too.
#pragma once

#include "attention/plan.h"

namespace fastdiff::attention {
namespace {

// The most lanes that a strip of queries has, on any instruction set.
inline constexpr int kMostLanes = 64;
inline constexpr int kMostWidth = 16;  // and a register

constexpr int64_t rounded_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// The queries of a block, filled up to whole strips.
inline int64_t lanes_of(const Plan& plan) {
  return rounded_up(plan.block_q, kMostLanes);
}
// What BlockBias needs.
inline int64_t bias_numel(const Plan& plan, const PairBias& bias) {
  if (bias.data == nullptr) return 0;
  const int64_t block = bias.is_of_pairs() ? int64_t{plan.block_k} * kMostLanes : plan.block_k;
  return rounded_up(bias.entries, kMostWidth) + rounded_up(block, kMostWidth);
}

}  // namespace
}  // namespace fastdiff::attention
