// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.normed_token_mean, functional and out= variants.
#include "attention/normed_token_mean/normed_token_mean.h"
#include "core/host.h"

namespace fastdiff::normed_token_mean {
namespace {

constexpr const char* kOp = "normed_token_mean";

Arguments arguments_of(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& shift,
                       double eps) {
  return {view_of(kOp, "x", x), optional_view(kOp, "scale", scale), optional_view(kOp, "shift", shift), eps};
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

Tensor functional(Tensor x, OptionalTensor scale, OptionalTensor shift, double eps) {
  const Arguments arguments = arguments_of(x, scale, shift, eps);
  check(arguments);
  const int64_t sizes[] = {arguments.x.sizes[0], arguments.x.sizes[2]};
  Tensor result = empty_contiguous({nullptr, arguments.x.dtype, 2, sizes, nullptr, arguments.x.device});
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, OptionalTensor scale, OptionalTensor shift, double eps, Tensor result) {
  const Arguments arguments = arguments_of(x, scale, shift, eps);
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("normed_token_mean", TORCH_BOX(&functional));
  m.impl("normed_token_mean.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("normed_token_mean", TORCH_BOX(&functional));
  m.impl("normed_token_mean.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::normed_token_mean
