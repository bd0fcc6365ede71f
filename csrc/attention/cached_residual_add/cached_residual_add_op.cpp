// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.cached_residual_add, functional and out= variants.
#include "attention/cached_residual_add/cached_residual_add.h"
#include "core/host.h"

namespace fastdiff::cached_residual_add {
namespace {

constexpr const char* kOp = "cached_residual_add";

void run(const Arguments& arguments, const Shape& shape, const TensorView& result) {
  const Params params = prepare(arguments, shape, result);
  if (params.numel == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  parallel_ranges(params.numel, kTile, kSerialNumel,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

Tensor functional(Tensor h, std::vector<Tensor> components, std::vector<Tensor> gates,
                  std::vector<int64_t> gate_of) {
  const Arguments arguments{view_of(kOp, "h", h), views_of(kOp, "components", components),
                            views_of(kOp, "gates", gates), gate_of};
  const Shape shape = check(arguments);
  Tensor result = empty_output(arguments.h, shape.rank, shape.size, arguments.h.dtype);
  run(arguments, shape, view_of(kOp, "out", result));
  return result;
}

void out(Tensor h, std::vector<Tensor> components, std::vector<Tensor> gates, std::vector<int64_t> gate_of,
         Tensor result) {
  const Arguments arguments{view_of(kOp, "h", h), views_of(kOp, "components", components),
                            views_of(kOp, "gates", gates), gate_of};
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("cached_residual_add", TORCH_BOX(&functional));
  m.impl("cached_residual_add.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("cached_residual_add", TORCH_BOX(&functional));
  m.impl("cached_residual_add.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::cached_residual_add
