// SPDX-License-Identifier: Apache-2.0
// idwt for any array library, through DLPack. No torch, no allocation on a device: the caller gives the
// memory.
#include <pybind11/stl.h>

#include "core/python.h"
#include "wavelet/idwt/idwt.h"
#include "wavelet/leading.h"

namespace fastdiff::idwt {
namespace {

constexpr const char* kDoc =
    R"(Write the inverse of one level of a wavelet transform into `out`, whose last dimensions are the signal's.

The same kernels as torch.ops.fastdiff.idwt.out, for arrays of any library that speaks DLPack (NumPy, CuPy, ...).
See fastdiff.idwt. `taps` are both reconstruction filters, [*rec_lo, *rec_hi]; `edge` is 0, or 9 for mode
"periodization". For CUDA arrays give `scratch`, a uint8 array of idwt_scratch(...) bytes, and as `stream` the
cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc = "Bytes of device memory that idwt needs for CUDA arrays like these.";

constexpr const char* kWhere = "fastdiff::idwt: ";

std::vector<int64_t> spatial_size(const TensorView& out, int64_t ndim) {
  const int64_t count = std::clamp<int64_t>(ndim, 0, out.rank);
  return {out.sizes + out.rank - count, out.sizes + out.rank};
}

void idwt(const py::object& y, const py::object& out, const std::vector<double>& taps, int64_t ndim,
          int64_t edge, const py::object& scale, bool divide, const py::object& threshold, bool hard,
          const py::object& approximation, const py::object& scratch, uintptr_t stream) {
  const DlpackTensor bands(y, std::string(kWhere) + "y", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const auto optional = [stream](const py::object& array, const char* argument) {
    return OptionalArray(array, std::string(kWhere) + argument, Access::read, stream);
  };
  const OptionalArray of_scale = optional(scale, "scale"), of_threshold = optional(threshold, "threshold"),
                      first = optional(approximation, "approximation");
  const std::vector<int64_t> size = spatial_size(result.view(), ndim);
  const Arguments arguments{bands.view(),        taps, ndim,        edge, size, of_scale.view(), divide,
                            of_threshold.view(), hard, first.view()};
  const Params params = prepare(arguments, check(arguments), result.view());
  if (params.numel() == 0) return;
  const Device device = arguments.y.device;
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

int64_t needed(const py::object& y, const std::vector<double>& taps, int64_t ndim, int64_t edge,
               const std::vector<int64_t>& size, bool split) {
  const DlpackTensor bands(y, std::string(kWhere) + "y");
  Arguments arguments;
  arguments.y = bands.view();
  arguments.taps = taps;
  arguments.ndim = ndim;
  arguments.edge = edge;
  arguments.size = size;
  // A stand-in for the first band: only its shape counts.
  std::vector<int64_t> sizes;
  TensorView first = bands.view();
  if (split && first.rank > ndim) {
    sizes.assign(first.sizes, first.sizes + first.rank);
    sizes.erase(sizes.end() - ndim - 1);
    first = {first.data, first.dtype, first.rank - 1, sizes.data(), sizes.data(), first.device};
    arguments.approximation = first;
  }
  const Shape shape = check(arguments);
  const auto strides = wavelet::row_major(shape.size, shape.rank);
  const TensorView result{nullptr,    arguments.y.dtype, shape.rank,
                          shape.size, strides.data(),    arguments.y.device};
  return scratch_bytes(prepare(arguments, shape, result));
}

const PyRoom room([](py::module_& m) {
  m.def("idwt", &idwt, kDoc, py::arg("y"), py::arg("out"), py::kw_only(), py::arg("taps"), py::arg("ndim"),
        py::arg("edge"), py::arg("scale") = py::none(), py::arg("divide") = false,
        py::arg("threshold") = py::none(), py::arg("hard") = false, py::arg("approximation") = py::none(),
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("idwt_scratch", &needed, kScratchDoc, py::arg("y"), py::kw_only(), py::arg("taps"), py::arg("ndim"),
        py::arg("edge"), py::arg("size"), py::arg("split") = false);
});

}  // namespace
}  // namespace fastdiff::idwt
