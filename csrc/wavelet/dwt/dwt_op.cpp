// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.dwt, functional and out= variants.
#include "core/host.h"
#include "wavelet/dwt/dwt.h"

namespace fastdiff::dwt {
namespace {

constexpr const char* kOp = "dwt";

using OptionalSizes = std::optional<std::vector<int64_t>>;

// The op's arguments as views, which borrow them.
Arguments arguments_of(const Tensor& x, const std::vector<double>& taps, int64_t ndim, int64_t edge,
                       const OptionalTensor& scale, bool divide, const OptionalSizes& grid) {
  Arguments a{view_of(kOp, "x", x), taps, ndim, edge, std::nullopt, divide, std::nullopt};
  if (scale) a.scale = view_of(kOp, "scale", *scale);
  if (grid) a.grid = *grid;
  return a;
}

Tensor make_result(const Arguments& a, const Shape& shape) {
  const TensorView like{nullptr, a.x.dtype, shape.rank, shape.size, shape.stride_like, a.x.device};
  if (!shape.contiguous) return empty_output(like, shape.rank, shape.size, a.x.dtype);
  return empty_contiguous(like);
}

void run(const Arguments& arguments, const Shape& shape, const TensorView& result) {
  const Params params = prepare(arguments, shape, result);
  if (params.numel() == 0) return;
  const Device device = arguments.x.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = params.numel() < kSerialNumel ? kAlone : torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

Tensor functional(Tensor x, std::vector<double> taps, int64_t ndim, int64_t edge, OptionalTensor scale,
                  bool divide, OptionalSizes grid) {
  const Arguments arguments = arguments_of(x, taps, ndim, edge, scale, divide, grid);
  const Shape shape = check(arguments);
  Tensor result = make_result(arguments, shape);
  run(arguments, shape, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, std::vector<double> taps, int64_t ndim, int64_t edge, OptionalTensor scale, bool divide,
         OptionalSizes grid, Tensor result) {
  const Arguments arguments = arguments_of(x, taps, ndim, edge, scale, divide, grid);
  run(arguments, check(arguments), view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("dwt", TORCH_BOX(&functional));
  m.impl("dwt.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("dwt", TORCH_BOX(&functional));
  m.impl("dwt.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::dwt
