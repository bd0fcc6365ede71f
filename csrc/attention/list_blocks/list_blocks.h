// SPDX-License-Identifier: Apache-2.0
// list_blocks: the lists of a plan, in compressed rows, from a matrix of blocks.
//
// Each list has room for all blocks of its sample and head, R C entries, and begins at its own: lists do not
// wait for each other, nor the host for any of them. Entries that are not used are 0, and -1 in masks.
//
// Floor: one read of the blocks, one write of 4 bytes (8 with masks) for each.
#pragma once

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::list_blocks {

struct Arguments {
  TensorView kinds;  // [B, H, R, C], bool or uint8: a Kind
};

struct Results {
  TensorView offsets;  // [B, H, R + 1], int32
  TensorView columns;  // [B H R C], int32
  TensorView masks;    // the same for uint8, [0] for bool
};

struct Vector {
  int32_t* data = nullptr;
  int64_t step = 1;
};

struct Params {
  attention::Heads kinds;        // [B, H, R, C]
  int64_t lists = 0, heads = 1;  // B H, H
  int64_t rows = 0, columns = 0;
  Vector offsets;                                // [B, H, R + 1]
  int64_t offsets_sample = 0, offsets_head = 0;  // its strides
  Vector found, masks;                           // no masks: null

  constexpr int64_t room() const { return rows * columns; }  // entries of a list
  constexpr int64_t offsets_at(int64_t list) const {
    return list / heads * offsets_sample + list % heads * offsets_head;
  }
};

// Checks all but the results, and says how large those are. Throws Refusal.
struct Shapes {
  int64_t offsets[3], columns[1], masks[1];
};
Shapes check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Results& results);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::list_blocks
