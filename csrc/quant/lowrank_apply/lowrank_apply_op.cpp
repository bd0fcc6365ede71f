// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.lowrank_apply, functional and out= variants.
#include "core/host.h"
#include "quant/lowrank_apply/lowrank_apply.h"

namespace fastdiff::lowrank_apply {
namespace {

constexpr const char* kOp = "lowrank_apply";

struct Optional {
  const OptionalTensor &gates, &offset, &a, &mu, &b, &base;
};

Arguments arguments_of(const Tensor& x, const Tensor& down, const Tensor& up, const Optional& o) {
  return {view_of(kOp, "x", x),
          view_of(kOp, "down", down),
          view_of(kOp, "up", up),
          optional_view(kOp, "gates", o.gates),
          optional_view(kOp, "offset", o.offset),
          optional_view(kOp, "a", o.a),
          optional_view(kOp, "mu", o.mu),
          optional_view(kOp, "b", o.b),
          optional_view(kOp, "base", o.base)};
}

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.numel() == 0) return;
  const Device device = result.device;
  const On on(device);
  const Scratch scratch(device, scratch_bytes(params));
  if (device.type == DeviceType::cuda) return launch_cuda(params, scratch.data(), device.index, on.stream());
  isa::run<Cpu>(params, scratch.data(), torch_team());
}

Tensor functional(Tensor x, Tensor down, Tensor up, OptionalTensor gates, OptionalTensor offset,
                  OptionalTensor a, OptionalTensor mu, OptionalTensor b, OptionalTensor base) {
  const Arguments arguments = arguments_of(x, down, up, {gates, offset, a, mu, b, base});
  check(arguments);
  int64_t sizes[kMaxRank];
  std::copy_n(arguments.x.sizes, arguments.x.rank, sizes);
  sizes[arguments.x.rank - 1] = arguments.up.sizes[0];
  Tensor result = empty_output(arguments.x, arguments.x.rank, sizes, arguments.x.dtype);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, Tensor down, Tensor up, OptionalTensor gates, OptionalTensor offset, OptionalTensor a,
         OptionalTensor mu, OptionalTensor b, OptionalTensor base, Tensor result) {
  const Arguments arguments = arguments_of(x, down, up, {gates, offset, a, mu, b, base});
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("lowrank_apply", TORCH_BOX(&functional));
  m.impl("lowrank_apply.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("lowrank_apply", TORCH_BOX(&functional));
  m.impl("lowrank_apply.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::lowrank_apply
