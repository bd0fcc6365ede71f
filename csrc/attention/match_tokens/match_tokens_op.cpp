// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.match_tokens, functional and out= variants.
#include <tuple>

#include "attention/match_tokens/match_tokens.h"
#include "core/host.h"

namespace fastdiff::match_tokens {
namespace {

constexpr const char* kOp = "match_tokens";

void run(const Arguments& arguments, const TensorView& score, const TensorView& index) {
  const Params params = prepare(arguments, score, index);
  if (params.numel() == 0) return;
  const Device device = score.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, cuda_scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

std::tuple<Tensor, Tensor> functional(Tensor a, Tensor b) {
  const Arguments arguments{view_of(kOp, "a", a), view_of(kOp, "b", b)};
  check(arguments);
  const TensorView& x = arguments.a;
  const DType dtype = x.dtype == DType::f64 ? DType::f64 : DType::f32;
  Tensor score = empty_contiguous({nullptr, dtype, 2, x.sizes, nullptr, x.device});
  Tensor index = empty_contiguous({nullptr, DType::i64, 2, x.sizes, nullptr, x.device});
  run(arguments, view_of(kOp, "score", score), view_of(kOp, "index", index));
  return {score, index};
}

void out(Tensor a, Tensor b, Tensor score, Tensor index) {
  const Arguments arguments{view_of(kOp, "a", a), view_of(kOp, "b", b)};
  check(arguments);
  run(arguments, view_of(kOp, "score", score), view_of(kOp, "index", index));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("match_tokens", TORCH_BOX(&functional));
  m.impl("match_tokens.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("match_tokens", TORCH_BOX(&functional));
  m.impl("match_tokens.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::match_tokens
