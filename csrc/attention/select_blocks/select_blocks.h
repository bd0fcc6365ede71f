// SPDX-License-Identifier: Apache-2.0
// select_blocks: of each row of scores the highest ones, without sorting the row.
//
//   count   the `count` highest of a row; NaN is above all
//   mass    the fewest whose softmax over the row is at least `mass`; of a row without a softmax (NaN, +inf,
//           or nothing but -inf in it) none
//
// Of equal ones those in lower columns. Floor: one read of the scores; a row's keys are then searched 32
// times (64 for counts of float64) in the nearest memory that has room for them.
#pragma once

#include <optional>

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::select_blocks {

struct Arguments {
  TensorView scores;                // [B, H, R, C]
  std::optional<TensorView> count;  // [B|1, H|1], int64; one of the two is given
  std::optional<TensorView> mass;   // [B|1, H|1], fp32 or fp64
};

// How much each list wants: count or mass.
struct Limits {
  const void* data = nullptr;
  DType dtype = DType::i64;  // of counts; f32 or f64: masses
  int64_t sample = 0, head = 0;
};

struct Params {
  attention::Heads scores;       // [B, H, R, C]
  attention::Heads chosen;       // the same, bool
  int64_t lists = 0, heads = 1;  // B H, H
  int64_t rows = 0, columns = 0;
  Limits limits;

  constexpr bool by_mass() const { return limits.dtype != DType::i64; }
  bool wide() const { return scores.dtype == DType::f64; }
  constexpr int64_t numel() const { return lists * rows * columns; }
};

// Checks all but the result; on the CPU also every limit. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

// Memory for the keys of a row of each part, aligned to 8 bytes; its contents do not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);
// Memory for the keys of all rows, where they do not fit into shared memory; else 0.
int64_t cuda_scratch_bytes(const Params& params);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::select_blocks
