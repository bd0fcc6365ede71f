// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.dynamic_threshold, functional and out= variants.
#include "core/host.h"
#include "solver/dynamic_threshold/dynamic_threshold.h"

namespace fastdiff::dynamic_threshold {
namespace {

constexpr const char* kOp = "dynamic_threshold";

void run(const Arguments& arguments, const Shape& shape, const TensorView& result) {
  const Params params = prepare(arguments, shape, result);
  if (params.samples * params.numel == 0) return;
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

Tensor functional(Tensor x, double ratio, double max_value, double min_value) {
  const Arguments arguments{view_of(kOp, "x", x), ratio, max_value, min_value};
  const Shape shape = check(arguments);
  Tensor result = empty_output(arguments.x, shape.rank, shape.size, arguments.x.dtype);
  run(arguments, shape, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, double ratio, double max_value, double min_value, Tensor result) {
  const Arguments arguments{view_of(kOp, "x", x), ratio, max_value, min_value};
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("dynamic_threshold", TORCH_BOX(&functional));
  m.impl("dynamic_threshold.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("dynamic_threshold", TORCH_BOX(&functional));
  m.impl("dynamic_threshold.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::dynamic_threshold
