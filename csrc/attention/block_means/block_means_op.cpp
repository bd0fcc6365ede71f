// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.block_means, functional and out= variants.
#include "attention/block_means/block_means.h"
#include "core/host.h"

namespace fastdiff::block_means {
namespace {

constexpr const char* kOp = "block_means";

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.numel() == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params, torch_team());
}

Tensor functional(Tensor x, int64_t block) {
  const Arguments arguments{view_of(kOp, "x", x), block};
  int64_t shape[4];
  const DType dtype = check(arguments, shape);
  Tensor result = empty_contiguous({nullptr, dtype, 4, shape, nullptr, arguments.x.device});
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, int64_t block, Tensor result) {
  run({view_of(kOp, "x", x), block}, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("block_means", TORCH_BOX(&functional));
  m.impl("block_means.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("block_means", TORCH_BOX(&functional));
  m.impl("block_means.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::block_means
