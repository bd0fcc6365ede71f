// SPDX-License-Identifier: Apache-2.0
// The front desk of block_sparse_attention_backward: checks once for all callers and backends, then lays out
// the launch.
#include <cmath>

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_math.h"

namespace fastdiff::block_sparse_attention_backward {
namespace {

constexpr const char* kOp = "block_sparse_attention_backward";

void check_dbias(const Arguments& a, const attention::Extent& extent, const TensorView& dbias) {
  const int64_t wanted[] = {extent.samples, extent.heads, dbias_size(a, extent)}, none[] = {0};
  const TensorView like{nullptr, a.lse.dtype,      a.wants_bias ? 3 : 1, a.wants_bias ? wanted : none,
                        nullptr, a.tokens.q.device};
  attention::check_like(kOp, "dbias", dbias, "lse", like);
}

}  // namespace

attention::Extent check(const Arguments& a) {
  const attention::Extent extent = attention::check_tokens(kOp, a.tokens);
  const attention::Gathered queries(a.tokens.q, extent.queries);
  attention::check_like(kOp, "dout", a.dout, "q", queries.view());
  attention::check_like(kOp, "out", a.out, "q", queries.view());
  const attention::LseShape lse(queries.view());
  attention::check_lse(kOp, "lse", a.lse, lse);
  if (a.dlse) attention::check_lse(kOp, "dlse", *a.dlse, lse);
  if (!std::isfinite(a.scale)) refuse(kOp, "scale must be finite, got ", a.scale);
  const std::optional<TensorView>& bias = a.bias.bias;
  if (a.wants_bias && (!bias || bias->rank != 4 || bias->sizes[2] != 1))
    refuse(kOp,
           "bias must be one of keys, [B or 1, H or 1, 1, N_kv or 1], or a table, where its gradient is "
           "wanted, got ",
           bias ? shape_text(*bias) : "none");
  return extent;
}

Params prepare(const Arguments& a, const attention::Extent& extent, const Results& results) {
  Params p;
  p.extent = extent;
  p.plan = attention::check_plan(kOp, a.plan, extent, a.tokens.q.device);
  p.bias = attention::check_bias(kOp, a.bias, extent, a.tokens);
  const attention::Gathered queries(a.tokens.q, extent.queries), keys(a.tokens.k, extent.keys);
  attention::check_like(kOp, "dq", results.dq, "q", queries.view());
  attention::check_like(kOp, "dk", results.dk, "k", keys.view());
  attention::check_like(kOp, "dv", results.dv, "v", keys.view());
  check_dbias(a, extent, results.dbias);
  attention::check_results(
      kOp, {{"dq", &results.dq}, {"dk", &results.dk}, {"dv", &results.dv}, {"dbias", &results.dbias}},
      attention::inputs_of(
          a.plan, a.tokens, a.bias,
          {{"dout", &a.dout}, {"out", &a.out}, {"lse", &a.lse}, {"dlse", a.dlse ? &*a.dlse : nullptr}}));
  p.dout = attention::heads_of(a.dout);
  p.q = attention::heads_of(a.tokens.q, a.tokens.q_index);
  p.k = attention::heads_of(a.tokens.k, a.tokens.kv_index);
  p.v = attention::heads_of(a.tokens.v, a.tokens.kv_index);
  p.out = attention::heads_of(a.out);
  p.lse = attention::lse_of(a.lse);
  if (a.dlse) p.dlse = attention::lse_of(*a.dlse);
  p.dq = attention::heads_of(results.dq);
  p.dk = attention::heads_of(results.dk);
  p.dv = attention::heads_of(results.dv);
  if (a.wants_bias) (p.bias.entries > 0 ? p.dtable : p.dbias) = attention::lse_of(results.dbias);
  p.scale = a.scale;
  return p;
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return parts_of(p, threads) * Room(p).numel() * (p.wide() ? 8 : 4);
}

int64_t scratch_bytes(const Params& p) {
  const int64_t tables = p.dtable.data == nullptr ? 0 : kTablesOfHead * p.bias.entries;
  return p.extent.samples * p.extent.heads * (p.extent.queries + tables) *
         (p.wide() ? 8 : 4);  // delta, tables
}

int64_t dbias_size(const Arguments& a, const attention::Extent& extent) {
  const std::optional<TensorView>& bias = a.bias.bias;
  return a.bias.q_code && bias && bias->rank == 4 ? bias->sizes[3] : extent.keys;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::block_sparse_attention_backward
