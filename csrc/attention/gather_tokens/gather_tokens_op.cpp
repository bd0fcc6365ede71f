// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.gather_tokens, functional and out= variants.
#include "attention/gather_tokens/gather_tokens.h"
#include "core/host.h"

namespace fastdiff::gather_tokens {
namespace {

constexpr const char* kOp = "gather_tokens";

Arguments arguments_of(const Tensor& x, const Tensor& index, const OptionalTensor& fill,
                       const OptionalTensor& residual) {
  return {view_of(kOp, "x", x), view_of(kOp, "index", index), optional_view(kOp, "fill", fill),
          optional_view(kOp, "residual", residual)};
}

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.numel() == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  const int64_t serial = std::max<int64_t>(2, kSerialNumel / params.channels);
  parallel_ranges(params.rows(), 1, serial,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

Tensor functional(Tensor x, Tensor index, OptionalTensor fill, OptionalTensor residual) {
  const Arguments arguments = arguments_of(x, index, fill, residual);
  check(arguments);
  const int64_t sizes[] = {arguments.x.sizes[0], arguments.index.sizes[1], arguments.x.sizes[2]};
  Tensor result = empty_output(arguments.x, 3, sizes, arguments.x.dtype);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, Tensor index, OptionalTensor fill, OptionalTensor residual, Tensor result) {
  const Arguments arguments = arguments_of(x, index, fill, residual);
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("gather_tokens", TORCH_BOX(&functional));
  m.impl("gather_tokens.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("gather_tokens", TORCH_BOX(&functional));
  m.impl("gather_tokens.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::gather_tokens
