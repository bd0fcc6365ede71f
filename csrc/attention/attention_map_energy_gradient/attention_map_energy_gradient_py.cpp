// SPDX-License-Identifier: Apache-2.0
// attention_map_energy_gradient for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "attention/attention_map_energy_gradient/attention_map_energy_gradient.h"
#include "attention/maps_py.h"

namespace fastdiff::attention_map_energy_gradient {
namespace {

constexpr const char* kDoc =
    R"(Write the energies of attention maps and their gradients into the arrays `out` = (energy, dq, dk).

The same kernels as torch.ops.fastdiff.attention_map_energy_gradient.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.attention_map_energy_gradient. For CUDA arrays give `scratch`, a uint8 array of
attention_map_energy_gradient_scratch(q) bytes, and as `stream` the cudaStream_t to launch on; the call does not wait
for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that attention_map_energy_gradient needs for CUDA queries like q.";

constexpr const char* kWhere = "fastdiff::attention_map_energy_gradient: ";

std::string where(const char* argument) {
  return std::string(kWhere) + argument;
}

void attention_map_energy_gradient(const py::object& q, const py::object& k, const py::object& q_ref,
                                   const py::object& k_ref, const py::sequence& out, double scale,
                                   const py::object& scratch, uintptr_t stream) {
  const attention::MapArrays maps(kWhere, q, k, q_ref, k_ref, stream);
  if (py::len(out) != 3)
    throw py::value_error(where("out must be three arrays, energy, dq and dk, got ") +
                          std::to_string(py::len(out)));
  const DlpackTensor energy(out[0], where("energy"), Access::write, stream),
      dq(out[1], where("dq"), Access::write, stream), dk(out[2], where("dk"), Access::write, stream);
  const Arguments arguments = maps.arguments(scale);
  check(arguments);
  const Params params = prepare(arguments, {energy.view(), dq.view(), dk.view()});
  if (params.extent.samples == 0) return;
  const Device device = arguments.q.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(cpu_scratch_bytes(params, 1)) / sizeof(double) + 1);
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& q) {
  return attention::map_scratch_bytes(DlpackTensor(q, where("q")).view());
}

const PyRoom room([](py::module_& m) {
  m.def("attention_map_energy_gradient", &attention_map_energy_gradient, kDoc, py::arg("q"), py::arg("k"),
        py::arg("q_ref"), py::arg("k_ref"), py::arg("out"), py::kw_only(), py::arg("scale") = 1.0,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("attention_map_energy_gradient_scratch", &needed, kScratchDoc, py::arg("q"));
});

}  // namespace
}  // namespace fastdiff::attention_map_energy_gradient
