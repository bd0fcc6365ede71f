// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.select_blocks, functional and out= variants.
#include "attention/plan_op.h"
#include "attention/select_blocks/select_blocks.h"

namespace fastdiff::select_blocks {
namespace {

constexpr const char* kOp = "select_blocks";

Arguments arguments_of(const Tensor& scores, const OptionalTensor& count, const OptionalTensor& mass) {
  const Arguments arguments{view_of(kOp, "scores", scores), optional_view(kOp, "count", count),
                            optional_view(kOp, "mass", mass)};
  check(arguments);
  return arguments;
}

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.numel() == 0) return;
  const Device device = result.device;
  const On on(device);
  const Team team = torch_team();
  const bool cuda = device.type == DeviceType::cuda;
  const Scratch scratch(device, cuda ? cuda_scratch_bytes(params) : cpu_scratch_bytes(params, team.threads));
  if (cuda) return launch_cuda(params, scratch.data(), device.index, on.stream());
  isa::run<Cpu>(params, scratch.data(), team);
}

Tensor functional(Tensor scores, OptionalTensor count, OptionalTensor mass) {
  const Arguments arguments = arguments_of(scores, count, mass);
  Tensor result = empty_output(arguments.scores, 4, arguments.scores.sizes, DType::b8);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor scores, OptionalTensor count, OptionalTensor mass, Tensor result) {
  run(arguments_of(scores, count, mass), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("select_blocks", TORCH_BOX(&functional));
  m.impl("select_blocks.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("select_blocks", TORCH_BOX(&functional));
  m.impl("select_blocks.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::select_blocks
