// SPDX-License-Identifier: Apache-2.0
// The front desk of block_sparse_attention: checks once for all callers and backends, then lays out the
// launch.
#include <cmath>

#include "attention/block_sparse_attention/block_sparse_attention_math.h"

namespace fastdiff::block_sparse_attention {
namespace {

constexpr const char* kOp = "block_sparse_attention";

}  // namespace

attention::Extent check(const Arguments& a) {
  const attention::Extent extent = attention::check_tokens(kOp, a.tokens);
  if (!std::isfinite(a.scale)) refuse(kOp, "scale must be finite, got ", a.scale);
  return extent;
}

Params prepare(const Arguments& a, const attention::Extent& extent, const TensorView& out,
               const TensorView& lse) {
  Params p;
  p.extent = extent;
  p.plan = attention::check_plan(kOp, a.plan, extent, a.tokens.q.device);
  if (a.bias) p.bias = attention::check_bias(kOp, *a.bias, extent, a.tokens.q.device);
  attention::check_like(kOp, "out", out, "q", attention::Gathered(a.tokens.q, extent.queries).view());
  attention::check_lse(kOp, "lse", lse, attention::Gathered(a.tokens.q, extent.queries).view());
  attention::check_results(kOp, {{"out", &out}, {"lse", &lse}},
                           attention::inputs_of(a.plan, a.tokens, {{"bias", a.bias ? &*a.bias : nullptr}}));
  p.q = attention::heads_of(a.tokens.q, a.tokens.q_index);
  p.k = attention::heads_of(a.tokens.k, a.tokens.kv_index);
  p.v = attention::heads_of(a.tokens.v, a.tokens.kv_index);
  p.out = attention::heads_of(out);
  p.lse = attention::lse_of(lse);
  p.scale = a.scale;
  return p;
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return parts_of(p, threads) * Room(p).numel() * (p.wide() ? 8 : 4);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::block_sparse_attention
