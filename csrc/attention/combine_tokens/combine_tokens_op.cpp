// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.combine_tokens, functional and out= variants.
#include "attention/combine_tokens/combine_tokens.h"
#include "core/host.h"

namespace fastdiff::combine_tokens {
namespace {

constexpr const char* kOp = "combine_tokens";

Arguments arguments_of(const Tensor& x, const Tensor& offsets, const Tensor& members,
                       const OptionalTensor& weights) {
  return {view_of(kOp, "x", x), view_of(kOp, "offsets", offsets), view_of(kOp, "members", members),
          optional_view(kOp, "weights", weights)};
}

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.numel() == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  // Rows that have the most to read on average.
  const int64_t per_row = params.channels * (1 + params.entries / params.lists);
  const int64_t serial = std::max<int64_t>(2, kSerialNumel / per_row);
  parallel_ranges(params.rows(), 1, serial,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

Tensor functional(Tensor x, Tensor offsets, Tensor members, OptionalTensor weights) {
  const Arguments arguments = arguments_of(x, offsets, members, weights);
  check(arguments);
  const int64_t sizes[] = {arguments.x.sizes[0], arguments.offsets.sizes[1] - 1, arguments.x.sizes[2]};
  Tensor result = empty_output(arguments.x, 3, sizes, arguments.x.dtype);
  run(arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor x, Tensor offsets, Tensor members, OptionalTensor weights, Tensor result) {
  const Arguments arguments = arguments_of(x, offsets, members, weights);
  check(arguments);
  run(arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("combine_tokens", TORCH_BOX(&functional));
  m.impl("combine_tokens.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("combine_tokens", TORCH_BOX(&functional));
  m.impl("combine_tokens.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::combine_tokens
