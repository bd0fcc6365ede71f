// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention: softmax attention in which each block of queries sees some blocks of keys.
//
//   s[q, k] = scale q . k + bias[q, k]     for the keys that the plan lets q see
//   lse[q] = log sum_k exp(s[q, k])         out[q] = sum_k exp(s[q, k] - lse[q]) v[k]
//
// A query that sees nothing has out 0 and lse -inf. With lists of tokens, N_q and N_kv are those of the
// lists.
#pragma once

#include <optional>

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::block_sparse_attention {

struct Arguments {
  attention::Tokens tokens;
  attention::PlanArguments plan;
  std::optional<TensorView> bias;  // [B|1, H|1, N_q|1, N_kv|1]
  double scale = 1;
};

struct Params {
  attention::Extent extent;
  attention::Plan plan;
  attention::Heads q, k, v;
  attention::Scores bias;
  attention::Heads out;   // [B, H, N_q, D]
  attention::Scores lse;  // [B, H, N_q], fp32 (fp64 for fp64)
  double scale = 1;

  bool wide() const { return q.dtype == DType::f64; }
};

// Checks all but the results. Throws Refusal.
attention::Extent check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const attention::Extent& extent, const TensorView& out,
               const TensorView& lse);

// Memory that Cpu::run needs, best aligned to a cache line; its contents do not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::block_sparse_attention
