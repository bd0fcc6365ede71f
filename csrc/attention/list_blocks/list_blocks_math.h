// SPDX-License-Identifier: Apache-2.0
// What an entry of a list says.
#pragma once

#include "attention/list_blocks/list_blocks.h"

namespace fastdiff::list_blocks {
namespace {

// Which of a plan's bits a block has: those of its own number among all blocks, or none.
FASTDIFF_HD int32_t mask_of(uint8_t kind, int64_t number) {
  return kind == attention::kWhole ? -1 : static_cast<int32_t>(number);
}

}  // namespace
}  // namespace fastdiff::list_blocks
