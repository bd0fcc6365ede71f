// SPDX-License-Identifier: Apache-2.0
// scaled_error_norm for any array library, through DLPack. No torch, no allocation: the caller gives the
// memory.
#include <vector>

#include "core/python.h"
#include "solver/scaled_error_norm/scaled_error_norm.h"

namespace fastdiff::scaled_error_norm {
namespace {

constexpr const char* kDoc =
    R"(Write sqrt(mean(((higher - lower) / max(atol, rtol max(|lower|, |previous|)))^2)) of each sample into `out`.

The same kernels as torch.ops.fastdiff.scaled_error_norm.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.scaled_error_norm. For CUDA arrays give `scratch`, a uint8 array of
scaled_error_norm_scratch(lower) bytes, and as `stream` the cudaStream_t to launch on; the call does not
wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that scaled_error_norm needs for CUDA arrays like this.";

constexpr const char* kWhere = "fastdiff::scaled_error_norm: ";

void scaled_error_norm(const py::object& lower, const py::object& higher, const py::object& previous,
                       const py::object& out, double atol, double rtol, const py::object& scratch,
                       uintptr_t stream) {
  const DlpackTensor a(lower, std::string(kWhere) + "lower", Access::read, stream);
  const DlpackTensor b(higher, std::string(kWhere) + "higher", Access::read, stream);
  const DlpackTensor c(previous, std::string(kWhere) + "previous", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const Arguments arguments{{a.view(), b.view(), c.view()}, atol, rtol};
  const Params params = prepare(arguments, check(arguments), result.view());
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

int64_t needed(const py::object& lower) {
  const DlpackTensor x(lower, std::string(kWhere) + "lower");
  Params p;
  p.source.samples = x.view().rank ? x.view().sizes[0] : 1;
  p.source.numel = p.source.samples ? x.view().numel() / p.source.samples : 0;
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("scaled_error_norm", &scaled_error_norm, kDoc, py::arg("lower"), py::arg("higher"),
        py::arg("previous"), py::arg("out"), py::kw_only(), py::arg("atol") = 0.0078, py::arg("rtol") = 0.05,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("scaled_error_norm_scratch", &needed, kScratchDoc, py::arg("lower"));
});

}  // namespace
}  // namespace fastdiff::scaled_error_norm
