// SPDX-License-Identifier: Apache-2.0
// The front desk of block_sparse_attention: checks once for all callers and backends, then lays out the
// launch.
#include <cmath>

#include "attention/block_sparse_attention/block_sparse_attention_math.h"

namespace fastdiff::block_sparse_attention {
namespace {

constexpr const char* kOp = "block_sparse_attention";

void lay_out_weights(const TensorView& t, Device device, Params& p) {
  const int64_t whole[] = {p.plan.sets, p.extent.samples, p.extent.heads, p.extent.queries};
  bool fits = t.rank == 4 && t.sizes[0] == whole[0];
  for (int d = 1; fits && d < 4; ++d) fits = t.sizes[d] == 1 || t.sizes[d] == whole[d];
  if (!is_real_float(t.dtype))
    refuse(kOp, "weights must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
  if (t.device != device)
    refuse(kOp, "weights must be on ", device_text(device), " like q, got ", device_text(t.device));
  if (!fits)
    refuse(kOp, "weights must have shape [", whole[0], ", ", whole[1], " or 1, ", whole[2], " or 1, ",
           whole[3], " or 1] (one for each set of keys), got ", shape_text(t));
  const auto stride = [&t](int d) { return t.sizes[d] == 1 ? int64_t{0} : t.strides[d]; };
  p.weights = {t.data, t.dtype, stride(1), stride(2), stride(3), 0};
  p.weights_of_set = stride(0);
}

}  // namespace

attention::Extent check(const Arguments& a) {
  const attention::Extent extent = attention::check_tokens(kOp, a.tokens);
  if (!std::isfinite(a.scale)) refuse(kOp, "scale must be finite, got ", a.scale);
  if (!std::isfinite(a.mix)) refuse(kOp, "mix must be finite, got ", a.mix);
  if (a.q_end) attention::check_like(kOp, "q_end", *a.q_end, "q", a.tokens.q);
  return extent;
}

attention::LseShape lse_shape(const Arguments& a, const attention::Extent& extent) {
  const attention::Gathered queries(a.tokens.q, extent.queries);
  return attention::LseShape(queries.view(), std::max(size_t{1}, a.plan.sets.size()));
}

Params prepare(const Arguments& a, const attention::Extent& extent, const TensorView& out,
               const TensorView& lse) {
  Params p;
  p.extent = extent;
  p.plan = attention::check_plan(kOp, a.plan, extent, a.tokens.q.device);
  p.bias = attention::check_bias(kOp, a.bias, extent, a.tokens);
  attention::check_like(kOp, "out", out, "q", attention::Gathered(a.tokens.q, extent.queries).view());
  attention::check_lse(kOp, "lse", lse, lse_shape(a, extent));
  attention::check_results(kOp, {{"out", &out}, {"lse", &lse}},
                           attention::inputs_of(a.plan, a.tokens, a.bias,
                                                {{"weights", a.weights ? &*a.weights : nullptr},
                                                 {"q_end", a.q_end ? &*a.q_end : nullptr}}));
  p.q = attention::heads_of(a.tokens.q, a.tokens.q_index);
  if (a.q_end) p.q_end = attention::heads_of(*a.q_end, a.tokens.q_index);
  p.mix = a.mix;
  p.k = attention::heads_of(a.tokens.k, a.tokens.kv_index);
  p.v = attention::heads_of(a.tokens.v, a.tokens.kv_index);
  p.out = attention::heads_of(out);
  p.lse = attention::lse_of(lse);
  if (lse.rank == 4) p.lse_of_part = lse.strides[0];
  if (a.weights) lay_out_weights(*a.weights, a.tokens.q.device, p);
  p.scale = a.scale;
  p.splits = splits_of(p, a.tokens.q.device);
  p.tiles = isa::used() == Isa::amx && p.q.dtype == DType::bf16;
  return p;
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return (split_numel(p) + parts_of(p, threads) * Room(p).numel()) * (p.wide() ? 8 : 4);
}

int64_t cuda_scratch_bytes(const Params& p) {
  return split_numel(p) * (p.wide() ? 8 : 4);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::block_sparse_attention
