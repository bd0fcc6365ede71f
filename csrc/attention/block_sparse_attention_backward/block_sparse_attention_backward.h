// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward: the gradients of block_sparse_attention. With p[q, k] = exp(s[q, k] -
// lse[q]) formed again block by block, and the gradients dout and dlse of its two results,
//
//   delta[q] = dout[q] . out[q] - dlse[q]          ds[q, k] = p[q, k] (dout[q] . v[k] - delta[q])
//   dq[q] = scale sum_k ds[q, k] k[k]              dk[k] = scale sum_q ds[q, k] q[q]
//   dv[k] = sum_q p[q, k] dout[q]                  dbias[k] = sum_q ds[q, k]
//
// where dk and dv are sums over all heads that read the key. Of a bias that is a table, an entry's gradient
// is the sum over all pairs that have it.
#pragma once

#include <optional>

#include "attention/plan.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::block_sparse_attention_backward {

struct Arguments {
  TensorView dout;  // [B, H, N_q, D], with N_q and N_kv those of the lists of tokens
  attention::Tokens tokens;
  TensorView out, lse;             // [B, H, N_q, D], [B, H, N_q]
  std::optional<TensorView> dlse;  // like lse
  attention::PlanArguments plan;
  attention::BiasArguments bias;
  double scale = 1;
  bool wants_bias = false;
};

struct Results {
  TensorView dq, dk, dv;  // [B, H, N_q, D], [B, H_kv, N_kv, D]
  TensorView dbias;       // [B, H, N_kv] or [B, H, T], of the dtype of lse; [0] if it is not wanted
};

struct Params {
  attention::Extent extent;
  attention::Plan plan;
  attention::Heads dout, q, k, v, out;
  attention::Scores lse, dlse;
  attention::PairBias bias;
  attention::Heads dq, dk, dv;
  attention::Scores dbias, dtable;  // [B, H, N_kv] or [B, H, T]: `query` is the last stride
  double scale = 1;

  bool wide() const { return q.dtype == DType::f64; }
};

// Checks all but the results. Throws Refusal.
attention::Extent check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const attention::Extent& extent, const Results& results);

// Memory that a launch needs, best aligned to a cache line; its contents do not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);
int64_t scratch_bytes(const Params& params);  // launch_cuda, on the device

// The last size of dbias, where it is wanted.
int64_t dbias_size(const Arguments& arguments, const attention::Extent& extent);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::block_sparse_attention_backward
