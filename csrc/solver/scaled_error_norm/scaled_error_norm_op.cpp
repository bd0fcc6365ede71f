// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.scaled_error_norm, functional and out= variants.
#include "core/host.h"
#include "solver/scaled_error_norm/scaled_error_norm.h"

namespace fastdiff::scaled_error_norm {
namespace {

constexpr const char* kOp = "scaled_error_norm";

Arguments arguments_of(const Tensor& lower, const Tensor& higher, const Tensor& previous, double atol,
                       double rtol) {
  return {{view_of(kOp, "lower", lower), view_of(kOp, "higher", higher), view_of(kOp, "previous", previous)},
          atol,
          rtol};
}

void run(const Arguments& arguments, DType dtype, const TensorView& result) {
  const Params params = prepare(arguments, dtype, result);
  if (params.source.samples == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Scratch scratch(device, cpu_scratch_bytes(params));
  isa::run<Cpu>(params, scratch.data(), torch_team());
}

Tensor functional(Tensor lower, Tensor higher, Tensor previous, double atol, double rtol) {
  const Arguments arguments = arguments_of(lower, higher, previous, atol, rtol);
  const DType dtype = check(arguments);
  Tensor result = empty_vector(arguments.inputs[0].device, arguments.inputs[0].sizes[0], dtype);
  run(arguments, dtype, view_of(kOp, "out", result));
  return result;
}

void out(Tensor lower, Tensor higher, Tensor previous, double atol, double rtol, Tensor result) {
  const Arguments arguments = arguments_of(lower, higher, previous, atol, rtol);
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("scaled_error_norm", TORCH_BOX(&functional));
  m.impl("scaled_error_norm.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("scaled_error_norm", TORCH_BOX(&functional));
  m.impl("scaled_error_norm.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::scaled_error_norm
