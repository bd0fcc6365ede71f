// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.sparse_fill, functional and out= variants.
#include "core/host.h"
#include "quant/sparse_fill/sparse_fill.h"

namespace fastdiff::sparse_fill {
namespace {

constexpr const char* kOp = "sparse_fill";

Arguments arguments_of(const Tensor& w, const Tensor& threshold, const Tensor& values) {
  return {view_of(kOp, "w", w), view_of(kOp, "threshold", threshold), view_of(kOp, "values", values)};
}

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  const Device device = result.device;
  if (params.numel == 0) return check_count(params, 0);
  const On on(device);
  const Scratch scratch(device, scratch_numel(params) * static_cast<int64_t>(sizeof(int64_t)));
  auto* const ranks = static_cast<int64_t*>(scratch.data());
  if (device.type == DeviceType::cuda) return launch_cuda(params, ranks, device.index, on.stream());
  const Team team = torch_team();
  isa::run<Cpu>(params, Step::count, ranks, team);
  check_count(params, ranks[scratch_numel(params) - 1]);
  isa::run<Cpu>(params, Step::fill, ranks, team);
}

Tensor functional(Tensor w, Tensor threshold, Tensor values) {
  const Arguments arguments = arguments_of(w, threshold, values);
  check(arguments);
  Tensor result = empty_output(arguments.w, arguments.w.rank, arguments.w.sizes, arguments.w.dtype);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor w, Tensor threshold, Tensor values, Tensor result) {
  const Arguments arguments = arguments_of(w, threshold, values);
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("sparse_fill", TORCH_BOX(&functional));
  m.impl("sparse_fill.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("sparse_fill", TORCH_BOX(&functional));
  m.impl("sparse_fill.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::sparse_fill
