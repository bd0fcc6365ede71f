// SPDX-License-Identifier: Apache-2.0
// What every backend does in the same order: norms are sums in 16 lanes, scores are sums over kChunk channels
// at a time, each a chain of fused multiply-adds.
#pragma once

#include "attention/match_tokens/match_tokens.h"
#include "core/lanes.h"

namespace fastdiff::match_tokens {
namespace {

inline constexpr int kSumLanes = 16;
inline constexpr int64_t kChunk = 128;

// CUDA reads 16 bytes at a time of what it has normalised.
inline constexpr int64_t kAlignment = 16;

// What a thread of the CPU has: a strip of normalised rows, the scores of some columns with them, and as many
// rows as a register has lanes.
inline constexpr int64_t kMostLanes = 64, kMostWidth = 16;
inline constexpr int64_t kColumns = 96;

constexpr int64_t thread_numel(const Params& p) {
  return (p.padded() + kColumns) * kMostLanes + p.padded() * kMostWidth;
}

}  // namespace
}  // namespace fastdiff::match_tokens
