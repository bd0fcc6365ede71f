// SPDX-License-Identifier: Apache-2.0
// dynamic_threshold for any array library, through DLPack. No torch, no allocation: the caller gives the
// memory.
#include "core/python.h"
#include "solver/dynamic_threshold/dynamic_threshold.h"

namespace fastdiff::dynamic_threshold {
namespace {

constexpr const char* kDoc =
    R"(Write clamp(x, -s, s) / s into `out`, s = clamp(quantile(|x_b|, ratio), min_value, max_value) of each sample.

The same kernels as torch.ops.fastdiff.dynamic_threshold.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.dynamic_threshold. For CUDA arrays give `scratch`, a uint8 array of
dynamic_threshold_scratch(x) bytes, and as `stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that dynamic_threshold needs for a CUDA array like x.";

constexpr const char* kWhere = "fastdiff::dynamic_threshold: ";

void dynamic_threshold(const py::object& x, const py::object& out, double ratio, double max_value,
                       double min_value, const py::object& scratch, uintptr_t stream) {
  const DlpackTensor source(x, std::string(kWhere) + "x", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const Arguments arguments{source.view(), ratio, max_value, min_value};
  const Params params = prepare(arguments, check(arguments), result.view());
  if (params.samples * params.numel == 0) return;
  const Device device = arguments.x.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    return isa::run<Cpu>(params, nullptr, kAlone);  // one thread needs no scratch
  }
#endif
  const Scratch memory(scratch, kWhere, scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& x) {
  const DlpackTensor source(x, std::string(kWhere) + "x");
  const TensorView& view = source.view();
  Params p;
  p.samples = view.rank ? view.sizes[0] : 1;
  p.numel = p.samples ? view.numel() / p.samples : 0;
  p.compute_double = view.dtype == DType::f64;
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("dynamic_threshold", &dynamic_threshold, kDoc, py::arg("x"), py::arg("out"), py::kw_only(),
        py::arg("ratio") = 0.995, py::arg("max_value") = 1.0, py::arg("min_value") = 1.0,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("dynamic_threshold_scratch", &needed, kScratchDoc, py::arg("x"));
});

}  // namespace
}  // namespace fastdiff::dynamic_threshold
