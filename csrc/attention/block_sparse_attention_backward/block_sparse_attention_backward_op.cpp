// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.block_sparse_attention_backward, functional and out= variants.
#include <tuple>

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward.h"
#include "attention/plan_op.h"

namespace fastdiff::block_sparse_attention_backward {
namespace {

constexpr const char* kOp = "block_sparse_attention_backward";

Arguments arguments_of(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                       const OptionalTensor& q_index, const OptionalTensor& kv_index, const Tensor& out,
                       const Tensor& lse, const OptionalTensor& dlse, const Tensor& offsets,
                       const Tensor& columns, const OptionalTensor& masks, const OptionalTensor& bits,
                       int64_t block_q, int64_t block_k, const OptionalTensor& bias,
                       const OptionalTensor& q_code, const OptionalTensor& k_code, double scale,
                       bool wants_bias) {
  return {view_of(kOp, "dout", dout),
          attention::tokens_of(kOp, q, k, v, q_index, kv_index),
          view_of(kOp, "out", out),
          view_of(kOp, "lse", lse),
          optional_view(kOp, "dlse", dlse),
          attention::plan_of(kOp, offsets, columns, masks, bits, block_q, block_k),
          attention::bias_of(kOp, bias, q_code, k_code),
          scale,
          wants_bias};
}

void run(const Arguments& arguments, const attention::Extent& extent, const Results& results) {
  const Params params = prepare(arguments, extent, results);
  if (params.extent.samples * params.extent.kv_heads == 0) return;
  const Device device = arguments.tokens.q.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

Results views_of_results(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias) {
  return {view_of(kOp, "dq", dq), view_of(kOp, "dk", dk), view_of(kOp, "dv", dv),
          view_of(kOp, "dbias", dbias)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> functional(Tensor dout, Tensor q, Tensor k, Tensor v,
                                                      OptionalTensor q_index, OptionalTensor kv_index,
                                                      Tensor out, Tensor lse, OptionalTensor dlse,
                                                      Tensor offsets, Tensor columns, OptionalTensor masks,
                                                      OptionalTensor bits, int64_t block_q, int64_t block_k,
                                                      OptionalTensor bias, OptionalTensor q_code,
                                                      OptionalTensor k_code, double scale, bool wants_bias) {
  const Arguments a = arguments_of(dout, q, k, v, q_index, kv_index, out, lse, dlse, offsets, columns, masks,
                                   bits, block_q, block_k, bias, q_code, k_code, scale, wants_bias);
  const attention::Extent extent = check(a);
  const int64_t wanted[] = {extent.samples, extent.heads, dbias_size(a, extent)}, none[] = {0};
  const attention::Gathered queries(a.tokens.q, extent.queries), keys(a.tokens.k, extent.keys);
  const auto like = [](const TensorView& t, const attention::Gathered& gathered) {
    return empty_output(t, 4, gathered.view().sizes, t.dtype);
  };
  Tensor dq = like(a.tokens.q, queries);
  Tensor dk = like(a.tokens.k, keys);
  Tensor dv = like(a.tokens.v, keys);
  Tensor dbias = empty_contiguous(
      {nullptr, a.lse.dtype, wants_bias ? 3 : 1, wants_bias ? wanted : none, nullptr, a.tokens.q.device});
  run(a, extent, views_of_results(dq, dk, dv, dbias));
  return {dq, dk, dv, dbias};
}

void out(Tensor dout, Tensor q, Tensor k, Tensor v, OptionalTensor q_index, OptionalTensor kv_index,
         Tensor forward, Tensor lse, OptionalTensor dlse, Tensor offsets, Tensor columns,
         OptionalTensor masks, OptionalTensor bits, int64_t block_q, int64_t block_k, OptionalTensor bias,
         OptionalTensor q_code, OptionalTensor k_code, double scale, bool wants_bias, Tensor dq, Tensor dk,
         Tensor dv, Tensor dbias) {
  const Arguments a = arguments_of(dout, q, k, v, q_index, kv_index, forward, lse, dlse, offsets, columns,
                                   masks, bits, block_q, block_k, bias, q_code, k_code, scale, wants_bias);
  run(a, check(a), views_of_results(dq, dk, dv, dbias));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("block_sparse_attention_backward", TORCH_BOX(&functional));
  m.impl("block_sparse_attention_backward.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("block_sparse_attention_backward", TORCH_BOX(&functional));
  m.impl("block_sparse_attention_backward.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::block_sparse_attention_backward
