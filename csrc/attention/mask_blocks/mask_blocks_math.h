// SPDX-License-Identifier: Apache-2.0
// What becomes of a block's bits.
#pragma once

#include "attention/mask_blocks/mask_blocks.h"

namespace fastdiff::mask_blocks {
namespace {

// The bits of a word of `queries` queries that are there, some of them perhaps after it, or none.
FASTDIFF_HD uint32_t bits_of(int64_t queries) {
  return queries >= 32 ? ~0u : queries <= 0 ? 0u : (1u << queries) - 1;
}

FASTDIFF_HD uint8_t kind_of(bool sees_any, bool misses_any) {
  return !sees_any ? attention::kUnseen : misses_any ? attention::kInPart : attention::kWhole;
}

}  // namespace
}  // namespace fastdiff::mask_blocks
