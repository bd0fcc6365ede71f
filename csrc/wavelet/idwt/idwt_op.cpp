// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.idwt, functional and out= variants.
#include "core/host.h"
#include "wavelet/idwt/idwt.h"

namespace fastdiff::idwt {
namespace {

constexpr const char* kOp = "idwt";

// The op's arguments as views, which borrow them.
Arguments arguments_of(const Tensor& y, const std::vector<double>& taps, int64_t ndim, int64_t edge,
                       const std::vector<int64_t>& size, const OptionalTensor& scale, bool divide,
                       const OptionalTensor& threshold, bool hard, const OptionalTensor& approximation) {
  Arguments a{view_of(kOp, "y", y), taps,   ndim,         edge, size,
              std::nullopt,         divide, std::nullopt, hard, std::nullopt};
  if (scale) a.scale = view_of(kOp, "scale", *scale);
  if (threshold) a.threshold = view_of(kOp, "threshold", *threshold);
  if (approximation) a.approximation = view_of(kOp, "approximation", *approximation);
  return a;
}

Tensor make_result(const Arguments& a, const Shape& shape) {
  const TensorView like{nullptr, a.y.dtype, shape.rank, shape.size, shape.stride_like, a.y.device};
  if (!shape.contiguous) return empty_output(like, shape.rank, shape.size, a.y.dtype);
  return empty_contiguous(like);
}

void run(const Arguments& arguments, const Shape& shape, const TensorView& result) {
  const Params params = prepare(arguments, shape, result);
  if (params.numel() == 0) return;
  const Device device = arguments.y.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = params.numel() < kSerialNumel ? kAlone : torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

Tensor functional(Tensor y, std::vector<double> taps, int64_t ndim, int64_t edge, std::vector<int64_t> size,
                  OptionalTensor scale, bool divide, OptionalTensor threshold, bool hard,
                  OptionalTensor approximation) {
  const Arguments arguments =
      arguments_of(y, taps, ndim, edge, size, scale, divide, threshold, hard, approximation);
  const Shape shape = check(arguments);
  Tensor result = make_result(arguments, shape);
  run(arguments, shape, view_of(kOp, "out", result));
  return result;
}

void out(Tensor y, std::vector<double> taps, int64_t ndim, int64_t edge, std::vector<int64_t> size,
         OptionalTensor scale, bool divide, OptionalTensor threshold, bool hard, OptionalTensor approximation,
         Tensor result) {
  const Arguments arguments =
      arguments_of(y, taps, ndim, edge, size, scale, divide, threshold, hard, approximation);
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("idwt", TORCH_BOX(&functional));
  m.impl("idwt.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("idwt", TORCH_BOX(&functional));
  m.impl("idwt.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::idwt
