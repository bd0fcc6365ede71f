// SPDX-License-Identifier: Apache-2.0
// block_means: the means of blocks of tokens, which choose the blocks that attend to each other.
//
//   y[b, h, r] = mean of x[b, h, n] for n of block r; the last block may have fewer tokens, and is divided by
//   as many.
//
// Floor: one read of x, and an addition for each of its elements.
#pragma once

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::block_means {

struct Arguments {
  TensorView x;  // [B, H, N, D]
  int64_t block = 0;
};

struct Params {
  attention::Heads x;             // [B, H, N, D]
  attention::Heads y;             // [B, H, R, D], fp32 (fp64 for fp64)
  int64_t lists = 0, heads = 1;   // B H, H
  int64_t blocks = 0, block = 1;  // R, tokens of each
  int64_t dim = 0;                // D

  bool wide() const { return x.dtype == DType::f64; }
  constexpr int64_t numel() const { return lists * blocks * dim; }
};

// Checks all but the result, whose shape [B, H, R, D] it writes. Throws Refusal.
DType check(const Arguments& arguments, int64_t (&shape)[4]);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::block_means
