// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention: softmax attention in which each block of queries sees some blocks of keys.
//
//   s[q, k] = scale q . k + bias[q, k]     for the keys that the plan lets q see
//   lse[q] = log sum_k exp(s[q, k])         out[q] = sum_k exp(s[q, k] - lse[q]) v[k]
//
// A query that sees nothing has out 0 and lse -inf. With lists of tokens, N_q and N_kv are those of the
// lists. Keys may be several sets side by side, each with a softmax of its own; out is then the sum of
// theirs, times weights. Queries may be a mixture of two tensors.
#pragma once

#include <optional>

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::block_sparse_attention {

struct Arguments {
  attention::Tokens tokens;
  attention::PlanArguments plan;
  attention::BiasArguments bias;
  std::optional<TensorView> weights;  // [S, B|1, H|1, N_q|1] for S sets; 1 if not given
  std::optional<TensorView> q_end;    // like q: the queries are q + mix (q_end - q)
  double mix = 0;
  double scale = 1;
};

struct Params {
  attention::Extent extent;
  attention::Plan plan;
  attention::Heads q, q_end, k, v;  // q_end may be none
  attention::PairBias bias;
  attention::Scores weights;   // [B, H, N_q], of each set
  int64_t weights_of_set = 0;  // stride of sets
  attention::Heads out;        // [B, H, N_q, D]
  attention::Scores lse;       // [B, H, N_q], fp32 (fp64 for fp64)
  int64_t lse_of_part = 0;     // stride of sets, or of splits
  int splits = 1;              // of each row of blocks: parts of it whose results are merged at the end
  int64_t out_of_split = 0;    // stride
  double mix = 0, scale = 1;
  bool tiles = false;  // on the CPU: by the tiles of AMX

  bool wide() const { return q.dtype == DType::f64; }
};

// Checks all but the results. Throws Refusal.
attention::Extent check(const Arguments& arguments);

// What lse has to look like.
attention::LseShape lse_shape(const Arguments& arguments, const attention::Extent& extent);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const attention::Extent& extent, const TensorView& out,
               const TensorView& lse);

// Memory that a launch needs, best aligned to a cache line; its contents do not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);
int64_t cuda_scratch_bytes(const Params& params);  // on the device

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::block_sparse_attention

template <>
inline constexpr bool fastdiff::kHasTiles<fastdiff::block_sparse_attention::Cpu> = true;
