// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.quantize_static, functional and out= variants.
#include "quant/affine_op.h"
#include "quant/norm_row_op.h"
#include "quant/quantize_static/quantize_static.h"

namespace fastdiff::quantize_static {
namespace {

constexpr const char* kOp = "quantize_static";

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.total() == 0) return;
  const On on(result.device);
  if (result.device.type == DeviceType::cuda) return launch_cuda(params, result.device.index, on.stream());
  const int64_t each = params.by_rows ? std::max<int64_t>(1, params.rows.columns) : 1;
  const int64_t serial = std::max<int64_t>(2, quant::kSerialElements / each);
  parallel_ranges(params.total(), params.by_rows ? 1 : 1024, serial,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

Tensor functional(Tensor x, Tensor scale, OptionalTensor zero_point, OptionalTensor step, int64_t low,
                  int64_t high, std::optional<double> eps, bool rms, OptionalTensor weight,
                  OptionalTensor bias, OptionalTensor scale_by, OptionalTensor shift) {
  const Arguments arguments{view_of(kOp, "x", x), quant::affine_arguments(kOp, scale, zero_point, step), low,
                            high, quant::norm_arguments(kOp, eps, rms, weight, bias, scale_by, shift)};
  check(arguments);
  Tensor result = empty_output(arguments.x, arguments.x.rank, arguments.x.sizes, DType::i8);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, Tensor scale, OptionalTensor zero_point, OptionalTensor step, int64_t low, int64_t high,
         std::optional<double> eps, bool rms, OptionalTensor weight, OptionalTensor bias,
         OptionalTensor scale_by, OptionalTensor shift, Tensor result) {
  const Arguments arguments{view_of(kOp, "x", x), quant::affine_arguments(kOp, scale, zero_point, step), low,
                            high, quant::norm_arguments(kOp, eps, rms, weight, bias, scale_by, shift)};
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("quantize_static", TORCH_BOX(&functional));
  m.impl("quantize_static.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("quantize_static", TORCH_BOX(&functional));
  m.impl("quantize_static.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::quantize_static
