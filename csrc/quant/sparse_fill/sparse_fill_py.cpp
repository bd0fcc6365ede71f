// SPDX-License-Identifier: Apache-2.0
// sparse_fill for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "core/python.h"
#include "quant/sparse_fill/sparse_fill.h"

namespace fastdiff::sparse_fill {
namespace {

constexpr const char* kDoc =
    R"(Write a dense array into `out`, with what is small in it replaced by the next of a list of values.

The same kernels as torch.ops.fastdiff.sparse_fill.out, for arrays of any library that speaks DLPack (NumPy, CuPy, ...).
See fastdiff.sparse_fill. For CUDA arrays give `scratch`, a uint8 array of sparse_fill_scratch(w) bytes, and as `stream`
the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc = "Bytes of device memory that sparse_fill needs for a CUDA array like w.";

constexpr const char* kWhere = "fastdiff::sparse_fill: ";

std::string where(const char* argument) {
  return std::string(kWhere) + argument;
}

void sparse_fill(const py::object& w, const py::object& threshold, const py::object& values,
                 const py::object& out, const py::object& scratch, uintptr_t stream) {
  const DlpackTensor of_w(w, where("w"), Access::read, stream),
      of_threshold(threshold, where("threshold"), Access::read, stream),
      of_values(values, where("values"), Access::read, stream),
      result(out, where("out"), Access::write, stream);
  const Arguments arguments{of_w.view(), of_threshold.view(), of_values.view()};
  check(arguments);
  const Params params = prepare(arguments, result.view());
  if (params.numel == 0) return check_count(params, 0);
  const Device device = arguments.w.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<int64_t> ranks(static_cast<size_t>(scratch_numel(params)));
    isa::run<Cpu>(params, Step::count, ranks.data(), kAlone);
    check_count(params, ranks.back());
    return isa::run<Cpu>(params, Step::fill, ranks.data(), kAlone);
  }
#endif
  const int64_t bytes = scratch_numel(params) * static_cast<int64_t>(sizeof(int64_t));
  const Scratch memory(scratch, kWhere, bytes, device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, static_cast<int64_t*>(memory.data()), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& w) {
  Params p;
  p.numel = DlpackTensor(w, where("w")).view().numel();
  return scratch_numel(p) * static_cast<int64_t>(sizeof(int64_t));
}

const PyRoom room([](py::module_& m) {
  m.def("sparse_fill", &sparse_fill, kDoc, py::arg("w"), py::arg("threshold"), py::arg("values"),
        py::arg("out"), py::kw_only(), py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("sparse_fill_scratch", &needed, kScratchDoc, py::arg("w"));
});

}  // namespace
}  // namespace fastdiff::sparse_fill
