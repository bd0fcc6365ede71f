// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.int8_linear, functional and out= variants.
#include "quant/epilogue_op.h"
#include "quant/int8_linear/int8_linear.h"

namespace fastdiff::int8_linear {
namespace {

constexpr const char* kOp = "int8_linear";

void run(const Arguments& arguments, const TensorView& y) {
  Params params = prepare(arguments, y);
  if (params.epilogue.rows == 0) return;
  const Device device = y.device;
  const On on(device);
  const Team team = torch_team();
  const bool cuda = device.type == DeviceType::cuda;
  const auto place = [&](void* memory) {
    return cuda ? place_cuda(params, memory) : place_cpu(params, team, memory);
  };
  const Scratch scratch(device, place(nullptr));
  place(scratch.data());
  if (cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params, team);
}

// Who calls with tensors: the views of all of them, checked.
Arguments arguments_of(const Tensor& x, const OptionalTensor& x_scale, const OptionalTensor& x_zero_point,
                       const Tensor& weight, const Tensor& scale, const Tensor& column_sum,
                       const OptionalTensor& zero_point, quant::EpilogueArguments epilogue, int64_t columns,
                       int64_t bits) {
  Arguments arguments{view_of(kOp, "x", x),
                      optional_view(kOp, "x_scale", x_scale),
                      optional_view(kOp, "x_zero_point", x_zero_point),
                      view_of(kOp, "weight", weight),
                      view_of(kOp, "scale", scale),
                      view_of(kOp, "column_sum", column_sum),
                      optional_view(kOp, "zero_point", zero_point),
                      std::move(epilogue),
                      columns,
                      bits};
  check(arguments);
  return arguments;
}

Tensor functional(Tensor x, OptionalTensor x_scale, OptionalTensor x_zero_point, Tensor weight, Tensor scale,
                  Tensor column_sum, OptionalTensor zero_point, OptionalTensor bias, OptionalTensor gate,
                  OptionalTensor residual, OptionalTensor down, OptionalTensor up, OptionalTensor gates,
                  int64_t columns, int64_t bits, int64_t activation, bool gated, int64_t dtype) {
  const Arguments arguments =
      arguments_of(x, x_scale, x_zero_point, weight, scale, column_sum, zero_point,
                   quant::epilogue_arguments(kOp, bias, gate, residual, down, up, gates, activation, gated),
                   columns, bits);
  Tensor y = quant::empty_result(kOp, arguments.x, columns, gated, dtype);
  run(arguments, view_of(kOp, "out", y));
  return y;
}

void out(Tensor x, OptionalTensor x_scale, OptionalTensor x_zero_point, Tensor weight, Tensor scale,
         Tensor column_sum, OptionalTensor zero_point, OptionalTensor bias, OptionalTensor gate,
         OptionalTensor residual, OptionalTensor down, OptionalTensor up, OptionalTensor gates,
         int64_t columns, int64_t bits, int64_t activation, bool gated, int64_t dtype, Tensor result) {
  const Arguments arguments =
      arguments_of(x, x_scale, x_zero_point, weight, scale, column_sum, zero_point,
                   quant::epilogue_arguments(kOp, bias, gate, residual, down, up, gates, activation, gated),
                   columns, bits);
  const TensorView y = view_of(kOp, "out", result);
  quant::check_code(kOp, y, dtype);
  run(arguments, y);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&functional));
  m.impl("int8_linear.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("int8_linear", TORCH_BOX(&functional));
  m.impl("int8_linear.out", TORCH_BOX(&out));
}

}  // namespace
}  // namespace fastdiff::int8_linear
