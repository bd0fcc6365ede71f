// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.fake_quant, functional and out= variants.
#include "quant/affine_op.h"
#include "quant/fake_quant/fake_quant.h"

namespace fastdiff::fake_quant {
namespace {

constexpr const char* kOp = "fake_quant";

Arguments arguments_of(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                       const OptionalTensor& step, int64_t low, int64_t high,
                       const OptionalTensor& gradient) {
  return {view_of(kOp, "x", x), quant::affine_arguments(kOp, scale, zero_point, step), low, high,
          optional_view(kOp, "gradient", gradient)};
}

void run(const Arguments& arguments, const TensorView& result) {
  quant::run_elements(prepare(arguments, result), result.device, &launch_cuda,
                      [](const auto&... range) { isa::run<Cpu>(range...); });
}

Tensor functional(Tensor x, Tensor scale, OptionalTensor zero_point, OptionalTensor step, int64_t low,
                  int64_t high, OptionalTensor gradient) {
  const Arguments arguments = arguments_of(x, scale, zero_point, step, low, high, gradient);
  check(arguments);
  Tensor result = empty_output(arguments.x, arguments.x.rank, arguments.x.sizes, arguments.x.dtype);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, Tensor scale, OptionalTensor zero_point, OptionalTensor step, int64_t low, int64_t high,
         OptionalTensor gradient, Tensor result) {
  const Arguments arguments = arguments_of(x, scale, zero_point, step, low, high, gradient);
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("fake_quant", TORCH_BOX(&functional));
  m.impl("fake_quant.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("fake_quant", TORCH_BOX(&functional));
  m.impl("fake_quant.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::fake_quant
