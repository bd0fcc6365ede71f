// SPDX-License-Identifier: Apache-2.0
// mask_blocks: a boolean mask as a plan has it: of each block of queries and keys whether it is seen, and its
// bits, in one read.
//
// Floor: one read of the mask, one write of an eighth of that.
#pragma once

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::mask_blocks {

struct Arguments {
  TensorView mask;  // [B, H, N_q, N_kv], bool
  int64_t block_q = 0, block_k = 0;
};

// [blocks, block_k, words]
struct Bits {
  uint32_t* data = nullptr;
  int64_t block = 0, key = 0, word = 0;  // strides
};

struct Params {
  attention::Heads mask;          // [B, H, N_q, N_kv]
  attention::Heads kinds;         // [B, H, R, C], uint8
  Bits bits;                      // [B H R C, block_k, ceil(block_q / 32)]
  int64_t lists = 0, heads = 1;   // B H, H
  int64_t queries = 0, keys = 0;  // N_q, N_kv
  int64_t rows = 0, columns = 0;  // R, C
  int block_q = 0, block_k = 0, words = 0;

  constexpr int64_t numel() const { return lists * rows * columns; }
};

struct Shapes {
  int64_t kinds[4], bits[3];
};

// Checks all but the results, and says how large those are. Throws Refusal.
Shapes check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& kinds, const TensorView& bits);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::mask_blocks
