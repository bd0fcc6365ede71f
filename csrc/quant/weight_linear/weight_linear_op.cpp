// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.weight_linear, functional and out= variants.
#include "quant/epilogue_op.h"
#include "quant/weight_linear/weight_linear.h"

namespace fastdiff::weight_linear {
namespace {

constexpr const char* kOp = "weight_linear";

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
Arguments arguments_of(const Tensor& x, const OptionalTensor& x_scale, const Tensor& weight,
                       const OptionalTensor& scale, const OptionalTensor& zero_point,
                       quant::EpilogueArguments epilogue, int64_t columns, int64_t scheme, int64_t group,
                       bool round_x) {
  Arguments arguments{view_of(kOp, "x", x),
                      optional_view(kOp, "x_scale", x_scale),
                      view_of(kOp, "weight", weight),
                      optional_view(kOp, "scale", scale),
                      optional_view(kOp, "zero_point", zero_point),
                      std::move(epilogue),
                      columns,
                      scheme,
                      group,
                      round_x};
  check(arguments);
  return arguments;
}

Tensor functional(Tensor x, OptionalTensor x_scale, Tensor weight, OptionalTensor scale,
                  OptionalTensor zero_point, OptionalTensor bias, OptionalTensor gate,
                  OptionalTensor residual, OptionalTensor down, OptionalTensor up, OptionalTensor gates,
                  int64_t columns, int64_t scheme, int64_t group, bool round_x, int64_t activation,
                  bool gated, int64_t dtype) {
  const Arguments arguments =
      arguments_of(x, x_scale, weight, scale, zero_point,
                   quant::epilogue_arguments(kOp, bias, gate, residual, down, up, gates, activation, gated),
                   columns, scheme, group, round_x);
  Tensor y = quant::empty_result(kOp, arguments.x, columns, gated, dtype);
  run(arguments, view_of(kOp, "out", y));
  return y;
}

void out(Tensor x, OptionalTensor x_scale, Tensor weight, OptionalTensor scale, OptionalTensor zero_point,
         OptionalTensor bias, OptionalTensor gate, OptionalTensor residual, OptionalTensor down,
         OptionalTensor up, OptionalTensor gates, int64_t columns, int64_t scheme, int64_t group,
         bool round_x, int64_t activation, bool gated, int64_t dtype, Tensor result) {
  const Arguments arguments =
      arguments_of(x, x_scale, weight, scale, zero_point,
                   quant::epilogue_arguments(kOp, bias, gate, residual, down, up, gates, activation, gated),
                   columns, scheme, group, round_x);
  const TensorView y = view_of(kOp, "out", result);
  quant::check_code(kOp, y, dtype);
  run(arguments, y);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("weight_linear", TORCH_BOX(&functional));
  m.impl("weight_linear.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("weight_linear", TORCH_BOX(&functional));
  m.impl("weight_linear.out", TORCH_BOX(&out));
}

}  // namespace
}  // namespace fastdiff::weight_linear
