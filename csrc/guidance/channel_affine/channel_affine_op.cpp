// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.channel_affine, functional and out= variants.
#include "core/host.h"
#include "guidance/channel_affine/channel_affine.h"

namespace fastdiff::channel_affine {
namespace {

constexpr const char* kOp = "channel_affine";

Arguments arguments_of(const Tensor& x, const OptionalTensor& style, const OptionalTensor& mean,
                       const OptionalTensor& std, double style_weight, double content_weight, double eps) {
  return {view_of(kOp, "x", x),
          optional_view(kOp, "style", style),
          optional_view(kOp, "mean", mean),
          optional_view(kOp, "std", std),
          style_weight,
          content_weight,
          eps};
}

void run(const Arguments& arguments, const Shape& shape, const TensorView& result) {
  const Params params = prepare(arguments, shape, result);
  if (params.samples * params.channels * params.x.numel == 0) return;
  const Device device = arguments.x.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

Tensor functional(Tensor x, OptionalTensor style, OptionalTensor mean, OptionalTensor std,
                  double style_weight, double content_weight, double eps) {
  const Arguments arguments = arguments_of(x, style, mean, std, style_weight, content_weight, eps);
  const Shape shape = check(arguments);
  Tensor result = empty_output(arguments.x, shape.rank, shape.size, arguments.x.dtype);
  run(arguments, shape, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, OptionalTensor style, OptionalTensor mean, OptionalTensor std, double style_weight,
         double content_weight, double eps, Tensor result) {
  const Arguments arguments = arguments_of(x, style, mean, std, style_weight, content_weight, eps);
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("channel_affine", TORCH_BOX(&functional));
  m.impl("channel_affine.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("channel_affine", TORCH_BOX(&functional));
  m.impl("channel_affine.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::channel_affine
