// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.guidance_stats, functional and out= variants.
#include "core/host.h"
#include "guidance/guidance_stats/guidance_stats.h"

namespace fastdiff::guidance_stats {
namespace {

constexpr const char* kOp = "guidance_stats";

// The op's arguments as views. Tensors are borrowed from the call's own arguments.
class Call {
 public:
  Call(const Tensor& uncond, const Tensor& cond, const std::vector<Tensor>& extras,
       const std::vector<double>& mix)
      : extras_(views_of(kOp, "extras", extras)),
        arguments{view_of(kOp, "uncond", uncond), view_of(kOp, "cond", cond), extras_, mix} {
    check(arguments);
  }
  Call(const Call&) = delete;

 private:
  std::vector<TensorView> extras_;

 public:
  const Arguments arguments;
};

void run(const Arguments& arguments, const TensorView& result) {
  const Params params = prepare(arguments, result);
  if (params.source.samples == 0) return;
  const Device device = result.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Scratch scratch(device, cpu_scratch_bytes(params));
  isa::run<Cpu>(params, scratch.data(), torch_team());
}

Tensor functional(Tensor uncond, Tensor cond, std::vector<Tensor> extras, std::vector<double> mix) {
  const Call call(uncond, cond, extras, mix);
  const TensorView& u = call.arguments.uncond;
  const int64_t size[2] = {u.sizes[0], sums_of(2 + static_cast<int>(extras.size()))},
                stride[2] = {size[1], 1};
  Tensor result = empty_output({nullptr, DType::f64, 2, size, stride, u.device}, 2, size, DType::f64);
  run(call.arguments, view_of(kOp, "out", result));
  return result;
}

void out(Tensor uncond, Tensor cond, std::vector<Tensor> extras, std::vector<double> mix, Tensor result) {
  const Call call(uncond, cond, extras, mix);
  run(call.arguments, view_of(kOp, "out", result));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("guidance_stats", TORCH_BOX(&functional));
  m.impl("guidance_stats.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("guidance_stats", TORCH_BOX(&functional));
  m.impl("guidance_stats.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::guidance_stats
