// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.quantize_per_token, functional and out= variants.
#include <tuple>

#include "quant/norm_row_op.h"
#include "quant/quantize_per_token/quantize_per_token.h"

namespace fastdiff::quantize_per_token {
namespace {

constexpr const char* kOp = "quantize_per_token";

void run(const Arguments& arguments, const TensorView& q, const TensorView& scale) {
  const Params params = prepare(arguments, q, scale);
  if (params.rows.rows == 0) return;
  const On on(q.device);
  if (q.device.type == DeviceType::cuda) return launch_cuda(params, q.device.index, on.stream());
  const int64_t serial = std::max<int64_t>(2, kSerialNumel / std::max<int64_t>(1, params.rows.columns));
  parallel_ranges(params.rows.rows, 1, serial,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

std::tuple<Tensor, Tensor> functional(Tensor x, std::optional<double> eps, bool rms, OptionalTensor weight,
                                      OptionalTensor bias, OptionalTensor scale_by, OptionalTensor shift) {
  const Arguments arguments{view_of(kOp, "x", x),
                            quant::norm_arguments(kOp, eps, rms, weight, bias, scale_by, shift)};
  check(arguments);
  const TensorView& view = arguments.x;
  int64_t sizes[kMaxRank];
  std::copy_n(view.sizes, view.rank, sizes);
  Tensor q = empty_output(view, view.rank, sizes, DType::i8);
  sizes[view.rank - 1] = 1;
  Tensor scale = empty_output(view, view.rank, sizes, DType::f32);
  run(arguments, view_of(kOp, "q", q), view_of(kOp, "scale", scale));
  return {q, scale};
}

void out(Tensor x, std::optional<double> eps, bool rms, OptionalTensor weight, OptionalTensor bias,
         OptionalTensor scale_by, OptionalTensor shift, Tensor q, Tensor scale) {
  const Arguments arguments{view_of(kOp, "x", x),
                            quant::norm_arguments(kOp, eps, rms, weight, bias, scale_by, shift)};
  check(arguments);
  run(arguments, view_of(kOp, "q", q), view_of(kOp, "scale", scale));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("quantize_per_token", TORCH_BOX(&functional));
  m.impl("quantize_per_token.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("quantize_per_token", TORCH_BOX(&functional));
  m.impl("quantize_per_token.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::quantize_per_token
