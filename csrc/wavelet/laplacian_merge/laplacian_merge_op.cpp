// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.laplacian_merge, functional and out= variants.
#include "core/host.h"
#include "wavelet/laplacian_merge/laplacian_merge.h"

namespace fastdiff::laplacian_merge {
namespace {

constexpr const char* kOp = "laplacian_merge";

void run(const Arguments& arguments, const Tensor& result) {
  Params params = prepare(arguments, view_of(kOp, "out", result));
  if (params.is_empty()) return;
  const Device device = arguments.bands[0].device;
  const On on(device);
  const Scratch scratch(device, params.scratch_bytes);
  params.put_between(scratch.data());
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params, torch_team());
}

Tensor functional(std::vector<Tensor> bands) {
  const std::vector<TensorView> views = views_of(kOp, "bands", bands);
  const Arguments arguments{views};
  const Shape shape = check(arguments);
  Tensor result = empty_output(views[0], shape.rank, shape.size, views[0].dtype);
  run(arguments, result);
  return result;
}

void out(std::vector<Tensor> bands, Tensor result) {
  const std::vector<TensorView> views = views_of(kOp, "bands", bands);
  const Arguments arguments{views};
  check(arguments);
  run(arguments, result);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("laplacian_merge", TORCH_BOX(&functional));
  m.impl("laplacian_merge.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("laplacian_merge", TORCH_BOX(&functional));
  m.impl("laplacian_merge.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::laplacian_merge
