// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.list_blocks, functional and out= variants.
#include <tuple>

#include "attention/list_blocks/list_blocks.h"
#include "core/host.h"

namespace fastdiff::list_blocks {
namespace {

constexpr const char* kOp = "list_blocks";

void run(const Arguments& arguments, const Tensor& offsets, const Tensor& columns, const Tensor& masks) {
  const Params params = prepare(arguments, {view_of(kOp, "offsets", offsets),
                                            view_of(kOp, "columns", columns), view_of(kOp, "masks", masks)});
  if (params.lists == 0) return;
  const Device device = arguments.kinds.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params, torch_team());
}

std::tuple<Tensor, Tensor, Tensor> functional(Tensor blocks) {
  const Arguments arguments{view_of(kOp, "blocks", blocks)};
  const Shapes shapes = check(arguments);
  const auto empty = [&](int rank, const int64_t* sizes) {
    return empty_contiguous({nullptr, DType::i32, rank, sizes, nullptr, arguments.kinds.device});
  };
  Tensor offsets = empty(3, shapes.offsets), columns = empty(1, shapes.columns),
         masks = empty(1, shapes.masks);
  run(arguments, offsets, columns, masks);
  return {offsets, columns, masks};
}

void out(Tensor blocks, Tensor offsets, Tensor columns, Tensor masks) {
  run({view_of(kOp, "blocks", blocks)}, offsets, columns, masks);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("list_blocks", TORCH_BOX(&functional));
  m.impl("list_blocks.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("list_blocks", TORCH_BOX(&functional));
  m.impl("list_blocks.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::list_blocks
