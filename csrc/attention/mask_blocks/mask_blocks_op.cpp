// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.mask_blocks, functional and out= variants.
#include <tuple>

#include "attention/mask_blocks/mask_blocks.h"
#include "core/host.h"

namespace fastdiff::mask_blocks {
namespace {

constexpr const char* kOp = "mask_blocks";

void run(const Arguments& arguments, const Tensor& kinds, const Tensor& bits) {
  const Params params = prepare(arguments, view_of(kOp, "kinds", kinds), view_of(kOp, "bits", bits));
  if (params.numel() == 0) return;
  const Device device = arguments.mask.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params, torch_team());
}

std::tuple<Tensor, Tensor> functional(Tensor mask, int64_t block_q, int64_t block_k) {
  const Arguments arguments{view_of(kOp, "mask", mask), block_q, block_k};
  const Shapes shapes = check(arguments);
  Tensor kinds = empty_contiguous({nullptr, DType::u8, 4, shapes.kinds, nullptr, arguments.mask.device});
  Tensor bits = empty_contiguous({nullptr, DType::i32, 3, shapes.bits, nullptr, arguments.mask.device});
  run(arguments, kinds, bits);
  return {kinds, bits};
}

void out(Tensor mask, int64_t block_q, int64_t block_k, Tensor kinds, Tensor bits) {
  run({view_of(kOp, "mask", mask), block_q, block_k}, kinds, bits);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("mask_blocks", TORCH_BOX(&functional));
  m.impl("mask_blocks.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("mask_blocks", TORCH_BOX(&functional));
  m.impl("mask_blocks.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::mask_blocks
