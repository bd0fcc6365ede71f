// SPDX-License-Identifier: Apache-2.0
// guidance_coefficients for any array library, through DLPack. No torch, no allocation: the caller gives the
// outputs.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "core/python.h"
#include "guidance/guidance_coefficients/guidance_coefficients.h"

namespace fastdiff::guidance_coefficients {
namespace {

constexpr const char* kDoc =
    R"(Write the coefficient table of a step for each sample into `out[0]`, and with `latch` the next one into `out[1]`.

The same kernels as torch.ops.fastdiff.guidance_coefficients.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.guidance_coefficients. `stream` is the cudaStream_t to launch on, for CUDA
arrays; the call does not wait for it.)";

constexpr const char* kWhere = "fastdiff::guidance_coefficients: ";

using Held = std::optional<DlpackTensor>;

const TensorView& hold(Held& held, const py::object& array, const char* name, Access access,
                       uintptr_t stream) {
  return held.emplace(array, std::string(kWhere) + name, access, stream).view();
}

const TensorView* hold_optional(Held& held, const py::object& array, const char* name, uintptr_t stream) {
  return array.is_none() ? nullptr : &hold(held, array, name, Access::read, stream);
}

void guidance_coefficients(const py::object& stats, const py::object& parameters, const py::object& table,
                           const std::vector<py::object>& out, int64_t method, int64_t numel, int64_t row,
                           const std::vector<int64_t>& targets, const py::object& step,
                           const py::object& latch, uintptr_t stream) {
  Held held[7];
  Arguments a;
  a.stats = hold(held[0], stats, "stats", Access::read, stream);
  a.parameters = hold(held[1], parameters, "parameters", Access::read, stream);
  a.table = hold(held[2], table, "table", Access::read, stream);
  a.step = hold_optional(held[3], step, "step", stream);
  a.latch = hold_optional(held[4], latch, "latch", stream);
  a.method = method;
  a.numel = numel;
  a.targets = targets;
  a.row = row;
  check(a);
  if (out.size() != (a.latch ? 2 : 1))
    throw py::value_error(std::string(kWhere) + "out must be " + (a.latch ? "2 arrays" : "1 array") +
                          ", got " + std::to_string(out.size()));
  const TensorView& result = hold(held[5], out[0], "out[0]", Access::write, stream);
  const TensorView* next = a.latch ? &hold(held[6], out[1], "out[1]", Access::write, stream) : nullptr;
  const Params params = prepare(a, result, next);
  if (params.samples == 0) return;
  const Device device = result.device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params);
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("guidance_coefficients", &guidance_coefficients, kDoc, py::arg("stats"), py::arg("parameters"),
        py::arg("table"), py::arg("out"), py::kw_only(), py::arg("method"), py::arg("numel"), py::arg("row"),
        py::arg("targets"), py::arg("step") = py::none(), py::arg("latch") = py::none(),
        py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::guidance_coefficients
