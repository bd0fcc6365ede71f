// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.attention_map_energy_gradient, functional and out= variants.
#include <tuple>

#include "attention/attention_map_energy_gradient/attention_map_energy_gradient.h"
#include "core/host.h"

namespace fastdiff::attention_map_energy_gradient {
namespace {

constexpr const char* kOp = "attention_map_energy_gradient";

Arguments arguments_of(const Tensor& q, const Tensor& k, const Tensor& q_ref, const Tensor& k_ref,
                       double scale) {
  return {view_of(kOp, "q", q), view_of(kOp, "k", k), view_of(kOp, "q_ref", q_ref),
          view_of(kOp, "k_ref", k_ref), scale};
}

void run(const Arguments& arguments, const Results& results) {
  const Params params = prepare(arguments, results);
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

Results views_of_results(const Tensor& energy, const Tensor& dq, const Tensor& dk) {
  return {view_of(kOp, "energy", energy), view_of(kOp, "dq", dq), view_of(kOp, "dk", dk)};
}

std::tuple<Tensor, Tensor, Tensor> functional(Tensor q, Tensor k, Tensor q_ref, Tensor k_ref, double scale) {
  const Arguments arguments = arguments_of(q, k, q_ref, k_ref, scale);
  check(arguments);
  const DType dtype = attention::result_dtype(arguments.q);
  Tensor energy = empty_vector(arguments.q.device, arguments.q.sizes[0], dtype);
  Tensor dq = empty_output(arguments.q, 4, arguments.q.sizes, dtype);
  Tensor dk = empty_output(arguments.k, 4, arguments.k.sizes, dtype);
  run(arguments, views_of_results(energy, dq, dk));
  return {energy, dq, dk};
}

void out(Tensor q, Tensor k, Tensor q_ref, Tensor k_ref, double scale, Tensor energy, Tensor dq, Tensor dk) {
  const Arguments arguments = arguments_of(q, k, q_ref, k_ref, scale);
  check(arguments);
  run(arguments, views_of_results(energy, dq, dk));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("attention_map_energy_gradient", TORCH_BOX(&functional));
  m.impl("attention_map_energy_gradient.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("attention_map_energy_gradient", TORCH_BOX(&functional));
  m.impl("attention_map_energy_gradient.out", TORCH_BOX(&out));
}

}  // namespace
}  // namespace fastdiff::attention_map_energy_gradient
