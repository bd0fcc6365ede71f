// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.attention_map_energy, functional and out= variants.
#include "attention/attention_map_energy/attention_map_energy.h"
#include "core/host.h"

namespace fastdiff::attention_map_energy {
namespace {

constexpr const char* kOp = "attention_map_energy";

Arguments arguments_of(const Tensor& q, const Tensor& k, const Tensor& q_ref, const Tensor& k_ref,
                       double scale) {
  return {view_of(kOp, "q", q), view_of(kOp, "k", k), view_of(kOp, "q_ref", q_ref),
          view_of(kOp, "k_ref", k_ref), scale};
}

void run(const Arguments& arguments, const TensorView& energy) {
  const Params params = prepare(arguments, energy);
  if (params.extent.samples == 0) return;
  const Device device = arguments.q.device;
  const On on(device);
  if (device.type == DeviceType::cuda) {
    const Scratch scratch(device, scratch_bytes(params));
    return launch_cuda(params, scratch.data(), device.index, on.stream());
  }
  const Team team = torch_team();
  const Scratch scratch(device, cpu_scratch_bytes(params, team.threads));
  isa::run<Cpu>(params, scratch.data(), team);
}

Tensor functional(Tensor q, Tensor k, Tensor q_ref, Tensor k_ref, double scale) {
  const Arguments arguments = arguments_of(q, k, q_ref, k_ref, scale);
  check(arguments);
  Tensor energy =
      empty_vector(arguments.q.device, arguments.q.sizes[0], attention::result_dtype(arguments.q));
  run(arguments, view_of(kOp, "out", energy));
  return energy;
}

void out(Tensor q, Tensor k, Tensor q_ref, Tensor k_ref, double scale, Tensor energy) {
  const Arguments arguments = arguments_of(q, k, q_ref, k_ref, scale);
  check(arguments);
  run(arguments, view_of(kOp, "out", energy));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("attention_map_energy", TORCH_BOX(&functional));
  m.impl("attention_map_energy.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("attention_map_energy", TORCH_BOX(&functional));
  m.impl("attention_map_energy.out", TORCH_BOX(&out));
}

}  // namespace
}  // namespace fastdiff::attention_map_energy
