// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.guidance_coefficients, functional and out= variants.
#include "core/host.h"
#include "guidance/guidance_coefficients/guidance_coefficients.h"

namespace fastdiff::guidance_coefficients {
namespace {

constexpr const char* kOp = "guidance_coefficients";

// The op's arguments as views. Tensors are borrowed from the call's own arguments.
class Call {
 public:
  Call(const Tensor& stats, const Tensor& parameters, const Tensor& table, const OptionalTensor& step,
       const OptionalTensor& latch, int64_t method, int64_t numel, int64_t row,
       const std::vector<int64_t>& targets) {
    arguments.stats = view_of(kOp, "stats", stats);
    arguments.parameters = view_of(kOp, "parameters", parameters);
    arguments.table = view_of(kOp, "table", table);
    if (step) arguments.step = &(step_ = view_of(kOp, "step", *step));
    if (latch) arguments.latch = &(latch_ = view_of(kOp, "latch", *latch));
    arguments.method = method;
    arguments.numel = numel;
    arguments.targets = targets;
    arguments.row = row;
    check(arguments);
  }
  Call(const Call&) = delete;

  Arguments arguments;

 private:
  TensorView step_, latch_;
};

void run(const Arguments& arguments, const std::vector<Tensor>& results) {
  const std::vector<TensorView> out = views_of(kOp, "out", results);
  if (out.size() != (arguments.latch ? 2 : 1))
    refuse(kOp, "out must be ", arguments.latch ? "2 tensors (with latch)" : "1 tensor", ", got ",
           out.size());
  const Params params = prepare(arguments, out[0], arguments.latch ? &out[1] : nullptr);
  if (params.samples == 0) return;
  const Device device = arguments.stats.device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params);
}

std::vector<Tensor> functional(Tensor stats, Tensor parameters, Tensor table, OptionalTensor step,
                               OptionalTensor latch, int64_t method, int64_t numel, int64_t row,
                               std::vector<int64_t> targets) {
  const Call call(stats, parameters, table, step, latch, method, numel, row, targets);
  const Arguments& a = call.arguments;
  const int64_t size[3] = {a.stats.sizes[0], a.table.size(-2), a.table.size(-1)};
  const int64_t stride[3] = {size[1] * size[2], size[2], 1};
  std::vector<Tensor> results;
  results.push_back(
      empty_output({nullptr, a.table.dtype, 3, size, stride, a.stats.device}, 3, size, a.table.dtype));
  if (latch) results.push_back(empty_vector(a.stats.device, size[0], DType::u8));
  run(a, results);
  return results;
}

void out(Tensor stats, Tensor parameters, Tensor table, OptionalTensor step, OptionalTensor latch,
         int64_t method, int64_t numel, int64_t row, std::vector<int64_t> targets,
         std::vector<Tensor> results) {
  const Call call(stats, parameters, table, step, latch, method, numel, row, targets);
  run(call.arguments, results);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("guidance_coefficients", TORCH_BOX(&functional));
  m.impl("guidance_coefficients.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("guidance_coefficients", TORCH_BOX(&functional));
  m.impl("guidance_coefficients.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::guidance_coefficients
