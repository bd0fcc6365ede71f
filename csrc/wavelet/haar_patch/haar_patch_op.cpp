// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.haar_patch, functional and out= variants.
#include "core/host.h"
#include "wavelet/haar_patch/haar_patch.h"

namespace fastdiff::haar_patch {
namespace {

constexpr const char* kOp = "haar_patch";

void run(const Arguments& arguments, const Shape& shape, const TensorView& result) {
  const Params params = prepare(arguments, shape, result);
  if (result.numel() == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  const int64_t lines = params.lines();
  parallel_ranges(lines, 1, params.numel() < kSerialNumel ? lines + 1 : 1,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

Tensor empty_result(const Arguments& arguments, const Shape& shape) {
  const TensorView& x = arguments.x;
  // Patches of one pixel leave the shape, and with it any dense layout, as it is.
  if (arguments.patch == 1) return empty_output(x, shape.rank, shape.size, x.dtype);
  int64_t strides[kRank];
  result_strides(arguments, shape, strides);
  return empty_output({nullptr, x.dtype, shape.rank, shape.size, strides, x.device}, shape.rank, shape.size,
                      x.dtype);
}

Tensor functional(Tensor x, int64_t patch, bool inverse, bool adjoint) {
  const Arguments arguments{view_of(kOp, "x", x), patch, inverse, adjoint};
  const Shape shape = check(arguments);
  Tensor result = empty_result(arguments, shape);
  run(arguments, shape, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, int64_t patch, bool inverse, bool adjoint, Tensor result) {
  const Arguments arguments{view_of(kOp, "x", x), patch, inverse, adjoint};
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("haar_patch", TORCH_BOX(&functional));
  m.impl("haar_patch.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("haar_patch", TORCH_BOX(&functional));
  m.impl("haar_patch.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::haar_patch
