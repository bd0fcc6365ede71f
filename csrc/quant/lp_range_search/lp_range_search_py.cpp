// SPDX-License-Identifier: Apache-2.0
// lp_range_search for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "core/python.h"
#include "quant/lp_range_search/lp_range_search.h"

namespace fastdiff::lp_range_search {
namespace {

constexpr const char* kDoc =
    R"(Write the range of a quantised array, or of each of its rows, that loses least in an Lp norm.

`out` is a pair of arrays: scale, float32, and zero_point, int32; 0-dimensional, or [rows] with by_rows=True. The same
kernels as torch.ops.fastdiff.lp_range_search.out, for arrays of any library that speaks DLPack (NumPy, CuPy, ...). See
fastdiff.lp_range_search. For CUDA arrays give `scratch`, a uint8 array of
lp_range_search_scratch(x, candidates, by_rows) bytes, and as `stream` the cudaStream_t to launch on; the call does not
wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that lp_range_search needs for a CUDA array like x.";

constexpr const char* kWhere = "fastdiff::lp_range_search: ";

std::string where(const char* argument) {
  return std::string(kWhere) + argument;
}

void lp_range_search(const py::object& x, const std::pair<py::object, py::object>& out, double p,
                     int64_t candidates, int64_t bits, bool by_rows, const py::object& scratch,
                     uintptr_t stream) {
  const DlpackTensor of_x(x, where("x"), Access::read, stream),
      scale(out.first, where("scale"), Access::write, stream),
      zero_point(out.second, where("zero_point"), Access::write, stream);
  const Arguments arguments{of_x.view(), p, candidates, bits, by_rows};
  check(arguments);
  const Params params = prepare(arguments, {scale.view(), zero_point.view()});
  if (params.rows == 0) return;
  const Device device = arguments.x.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(scratch_bytes(params)) / sizeof(double));
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& x, int64_t candidates, bool by_rows) {
  const DlpackTensor of_x(x, where("x"));
  const TensorView& view = of_x.view();
  check({view, 1, candidates, 8, by_rows});
  Params p;
  p.rows = by_rows ? view.sizes[0] : 1;
  p.numel = p.rows == 0 ? 0 : view.numel() / p.rows;
  p.candidates = static_cast<int>(candidates);
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("lp_range_search", &lp_range_search, kDoc, py::arg("x"), py::arg("out"), py::kw_only(),
        py::arg("p") = 2.4, py::arg("candidates") = 100, py::arg("bits") = 8, py::arg("by_rows") = false,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("lp_range_search_scratch", &needed, kScratchDoc, py::arg("x"), py::arg("candidates") = 100,
        py::arg("by_rows") = false);
});

}  // namespace
}  // namespace fastdiff::lp_range_search
