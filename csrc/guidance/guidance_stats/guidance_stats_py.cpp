// SPDX-License-Identifier: Apache-2.0
// guidance_stats for any array library, through DLPack. No torch, no allocation: the caller gives the memory.
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "core/python.h"
#include "guidance/guidance_stats/guidance_stats.h"

namespace fastdiff::guidance_stats {
namespace {

constexpr const char* kDoc =
    R"(Write each sample's sums and products of u, d = c - u and mixtures with more tensors into `out`.

The same kernels as torch.ops.fastdiff.guidance_stats.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.guidance_stats. For CUDA arrays give `scratch`, a uint8 array of
guidance_stats_scratch(uncond, extras) bytes, and as `stream` the cudaStream_t to launch on; the call does not
wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that guidance_stats needs for CUDA arrays like uncond, and so many extras.";

constexpr const char* kWhere = "fastdiff::guidance_stats: ";

void guidance_stats(const py::object& uncond, const py::object& cond, const py::object& out,
                    const std::vector<py::object>& extras, const std::vector<double>& mix,
                    const py::object& scratch, uintptr_t stream) {
  const DlpackTensor u(uncond, std::string(kWhere) + "uncond", Access::read, stream);
  const DlpackTensor c(cond, std::string(kWhere) + "cond", Access::read, stream);
  std::vector<std::unique_ptr<DlpackTensor>> held;
  std::vector<TensorView> views;
  for (const py::object& extra : extras) {
    const Argument argument("extras", static_cast<int64_t>(held.size()));
    held.push_back(std::make_unique<DlpackTensor>(extra, kWhere + argument.text(), Access::read, stream));
    views.push_back(held.back()->view());
  }
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const Arguments arguments{u.view(), c.view(), views, mix};
  check(arguments);
  const Params params = prepare(arguments, result.view());
  if (params.source.samples == 0) return;
  const Device device = result.view().device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(cpu_scratch_bytes(params)) / sizeof(double));
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& uncond, int extras) {
  const DlpackTensor x(uncond, std::string(kWhere) + "uncond");
  Params p;
  p.features = 2 + extras;
  p.source.samples = x.view().rank ? x.view().sizes[0] : 1;
  p.source.numel = p.source.samples ? x.view().numel() / p.source.samples : 0;
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("guidance_stats", &guidance_stats, kDoc, py::arg("uncond"), py::arg("cond"), py::arg("out"),
        py::kw_only(), py::arg("extras") = std::vector<py::object>{}, py::arg("mix") = std::vector<double>{},
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("guidance_stats_scratch", &needed, kScratchDoc, py::arg("uncond"), py::arg("extras") = 0);
});

}  // namespace
}  // namespace fastdiff::guidance_stats
