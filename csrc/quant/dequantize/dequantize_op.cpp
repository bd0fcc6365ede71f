// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.dequantize, functional and out= variants.
#include "quant/affine_op.h"
#include "quant/dequantize/dequantize.h"

namespace fastdiff::dequantize {
namespace {

constexpr const char* kOp = "dequantize";

Arguments arguments_of(const Tensor& q, const Tensor& scale, const OptionalTensor& zero_point,
                       const OptionalTensor& step, int64_t dtype) {
  const std::optional<DType> of_result = dtype_from_code(dtype);
  if (!of_result) refuse(kOp, "dtype must be float32, float16, bfloat16 or float64, got ScalarType ", dtype);
  return {view_of(kOp, "q", q), quant::affine_arguments(kOp, scale, zero_point, step), *of_result};
}

void run(const Arguments& arguments, const TensorView& result) {
  quant::run_elements(prepare(arguments, result), result.device, &launch_cuda,
                      [](const auto&... range) { isa::run<Cpu>(range...); });
}

Tensor functional(Tensor q, Tensor scale, OptionalTensor zero_point, OptionalTensor step, int64_t dtype) {
  const Arguments arguments = arguments_of(q, scale, zero_point, step, dtype);
  check(arguments);
  Tensor result = empty_output(arguments.q, arguments.q.rank, arguments.q.sizes, arguments.dtype);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor q, Tensor scale, OptionalTensor zero_point, OptionalTensor step, int64_t dtype,
         Tensor result) {
  const Arguments arguments = arguments_of(q, scale, zero_point, step, dtype);
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("dequantize", TORCH_BOX(&functional));
  m.impl("dequantize.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("dequantize", TORCH_BOX(&functional));
  m.impl("dequantize.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::dequantize
