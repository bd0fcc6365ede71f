// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.int8_conv2d, functional and out= variants.
#include "quant/epilogue_op.h"
#include "quant/int8_conv2d/int8_conv2d.h"

namespace fastdiff::int8_conv2d {
namespace {

using Sizes = std::vector<int64_t>;

constexpr const char* kOp = "int8_conv2d";

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

Arguments arguments_of(const Tensor& x, const OptionalTensor& x_scale, const OptionalTensor& x_zero_point,
                       const Tensor& weight, const Tensor& scale, const Tensor& column_sum,
                       const OptionalTensor& zero_point, quant::EpilogueArguments epilogue, int64_t columns,
                       int64_t bits, Sizes kernel, Sizes stride, Sizes padding, Sizes dilation) {
  return {view_of(kOp, "x", x),
          optional_view(kOp, "x_scale", x_scale),
          optional_view(kOp, "x_zero_point", x_zero_point),
          view_of(kOp, "weight", weight),
          view_of(kOp, "scale", scale),
          view_of(kOp, "column_sum", column_sum),
          optional_view(kOp, "zero_point", zero_point),
          std::move(epilogue),
          columns,
          bits,
          std::move(kernel),
          std::move(stride),
          std::move(padding),
          std::move(dilation)};
}

quant::EpilogueArguments epilogue_of(const OptionalTensor& bias, const OptionalTensor& gate,
                                     const OptionalTensor& residual, int64_t activation, bool gated) {
  return quant::epilogue_arguments(kOp, bias, gate, residual, {}, {}, {}, activation, gated);
}

// Channels last, as the next convolution reads them best.
Tensor empty_result(const TensorView& x, const std::array<int64_t, 4>& shape, int64_t code) {
  const auto [b, n, h, w] = shape;
  const int64_t strides[4] = {h * w * n, 1, w * n, n};
  TensorView like = x;
  like.sizes = shape.data(), like.strides = strides;
  return empty_output(like, 4, shape.data(), quant::result_dtype(kOp, x, code));
}

Tensor functional(Tensor x, OptionalTensor x_scale, OptionalTensor x_zero_point, Tensor weight, Tensor scale,
                  Tensor column_sum, OptionalTensor zero_point, OptionalTensor bias, OptionalTensor gate,
                  OptionalTensor residual, int64_t columns, Sizes kernel, Sizes stride, Sizes padding,
                  Sizes dilation, int64_t bits, int64_t activation, bool gated, int64_t dtype) {
  const Arguments arguments =
      arguments_of(x, x_scale, x_zero_point, weight, scale, column_sum, zero_point,
                   epilogue_of(bias, gate, residual, activation, gated), columns, bits, std::move(kernel),
                   std::move(stride), std::move(padding), std::move(dilation));
  Tensor y = empty_result(arguments.x, check(arguments), dtype);
  run(arguments, view_of(kOp, "out", y));
  return y;
}

void out(Tensor x, OptionalTensor x_scale, OptionalTensor x_zero_point, Tensor weight, Tensor scale,
         Tensor column_sum, OptionalTensor zero_point, OptionalTensor bias, OptionalTensor gate,
         OptionalTensor residual, int64_t columns, Sizes kernel, Sizes stride, Sizes padding, Sizes dilation,
         int64_t bits, int64_t activation, bool gated, int64_t dtype, Tensor result) {
  const Arguments arguments =
      arguments_of(x, x_scale, x_zero_point, weight, scale, column_sum, zero_point,
                   epilogue_of(bias, gate, residual, activation, gated), columns, bits, std::move(kernel),
                   std::move(stride), std::move(padding), std::move(dilation));
  check(arguments);
  const TensorView y = view_of(kOp, "out", result);
  quant::check_code(kOp, y, dtype);
  run(arguments, y);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("int8_conv2d", TORCH_BOX(&functional));
  m.impl("int8_conv2d.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("int8_conv2d", TORCH_BOX(&functional));
  m.impl("int8_conv2d.out", TORCH_BOX(&out));
}

}  // namespace
}  // namespace fastdiff::int8_conv2d
