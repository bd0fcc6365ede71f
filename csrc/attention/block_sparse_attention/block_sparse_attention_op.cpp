// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.block_sparse_attention, functional and out= variants.
#include <tuple>
#include <utility>

#include "attention/block_sparse_attention/block_sparse_attention_math.h"
#include "attention/plan_op.h"

namespace fastdiff::block_sparse_attention {
namespace {

constexpr const char* kOp = "block_sparse_attention";

Arguments arguments_of(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_index,
                       const OptionalTensor& kv_index, const Tensor& offsets, const Tensor& columns,
                       const OptionalTensor& masks, const OptionalTensor& bits, int64_t block_q,
                       int64_t block_k, std::vector<int64_t> sets, const OptionalTensor& bias,
                       const OptionalTensor& q_code, const OptionalTensor& k_code,
                       const OptionalTensor& weights, const OptionalTensor& q_end, double mix, double scale) {
  return {attention::tokens_of(kOp, q, k, v, q_index, kv_index),
          attention::plan_of(kOp, offsets, columns, masks, bits, block_q, block_k, std::move(sets)),
          attention::bias_of(kOp, bias, q_code, k_code),
          optional_view(kOp, "weights", weights),
          optional_view(kOp, "q_end", q_end),
          mix,
          scale};
}

void run(const Arguments& arguments, const attention::Extent& extent, const TensorView& out,
         const TensorView& lse) {
  const Params params = prepare(arguments, extent, out, lse);
  if (rows_of_all(params) == 0) return;
  const Device device = arguments.tokens.q.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, cuda_scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

std::tuple<Tensor, Tensor> functional(Tensor q, Tensor k, Tensor v, OptionalTensor q_index,
                                      OptionalTensor kv_index, Tensor offsets, Tensor columns,
                                      OptionalTensor masks, OptionalTensor bits, int64_t block_q,
                                      int64_t block_k, std::vector<int64_t> sets, OptionalTensor bias,
                                      OptionalTensor q_code, OptionalTensor k_code, OptionalTensor weights,
                                      OptionalTensor q_end, double mix, double scale) {
  const Arguments arguments =
      arguments_of(q, k, v, q_index, kv_index, offsets, columns, masks, bits, block_q, block_k,
                   std::move(sets), bias, q_code, k_code, weights, q_end, mix, scale);
  const attention::Extent extent = check(arguments);
  const attention::Gathered gathered(arguments.tokens.q, extent.queries);
  const TensorView& like = gathered.view();
  Tensor out = empty_output(arguments.tokens.q, 4, like.sizes, like.dtype);
  Tensor lse = empty_contiguous(lse_shape(arguments, extent).view());
  run(arguments, extent, view_of(kOp, "out", out), view_of(kOp, "lse", lse));
  return {out, lse};
}

void out(Tensor q, Tensor k, Tensor v, OptionalTensor q_index, OptionalTensor kv_index, Tensor offsets,
         Tensor columns, OptionalTensor masks, OptionalTensor bits, int64_t block_q, int64_t block_k,
         std::vector<int64_t> sets, OptionalTensor bias, OptionalTensor q_code, OptionalTensor k_code,
         OptionalTensor weights, OptionalTensor q_end, double mix, double scale, Tensor result, Tensor lse) {
  const Arguments arguments =
      arguments_of(q, k, v, q_index, kv_index, offsets, columns, masks, bits, block_q, block_k,
                   std::move(sets), bias, q_code, k_code, weights, q_end, mix, scale);
  run(arguments, check(arguments), view_of(kOp, "out", result), view_of(kOp, "lse", lse));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("block_sparse_attention", TORCH_BOX(&functional));
  m.impl("block_sparse_attention.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("block_sparse_attention", TORCH_BOX(&functional));
  m.impl("block_sparse_attention.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::block_sparse_attention
