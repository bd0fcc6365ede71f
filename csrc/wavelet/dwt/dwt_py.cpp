// SPDX-License-Identifier: Apache-2.0
// dwt for any array library, through DLPack. No torch, no allocation on a device: the caller gives the
// memory.
#include <pybind11/stl.h>

#include "core/python.h"
#include "wavelet/dwt/dwt.h"
#include "wavelet/leading.h"

namespace fastdiff::dwt {
namespace {

constexpr const char* kDoc =
    R"(Write one level of the wavelet transform of the last `ndim` dimensions of x into `out`.

The same kernels as torch.ops.fastdiff.dwt.out, for arrays of any library that speaks DLPack (NumPy, CuPy, ...).
See fastdiff.dwt. `taps` are both decomposition filters, each reversed: [*dec_lo[::-1], *dec_hi[::-1]]; `edge` is
the number of a mode: zero, constant, symmetric, reflect, periodic, smooth, antisymmetric, antireflect,
periodization. `out` is [*, 2**ndim, *spatial], and may be larger than the bands along the last dimensions: zeros
fill it. For CUDA arrays give `scratch`, a uint8 array of dwt_scratch(...) bytes, and as `stream` the cudaStream_t
to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc = "Bytes of device memory that dwt needs for CUDA arrays like these.";

constexpr const char* kWhere = "fastdiff::dwt: ";

// The spatial size of the result that is there, as the grid.
std::vector<int64_t> grid_of(const TensorView& out, int64_t ndim) {
  const int64_t count = std::clamp<int64_t>(ndim, 0, out.rank);
  return {out.sizes + out.rank - count, out.sizes + out.rank};
}

void dwt(const py::object& x, const py::object& out, const std::vector<double>& taps, int64_t ndim,
         int64_t edge, const py::object& scale, bool divide, const py::object& scratch, uintptr_t stream) {
  const DlpackTensor signal(x, std::string(kWhere) + "x", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  std::optional<DlpackTensor> numbers;
  if (!scale.is_none()) numbers.emplace(scale, std::string(kWhere) + "scale", Access::read, stream);
  const std::vector<int64_t> grid = grid_of(result.view(), ndim);
  Arguments arguments{signal.view(), taps, ndim, edge, std::nullopt, divide, grid};
  if (numbers) arguments.scale = numbers->view();
  const Params params = prepare(arguments, check(arguments), result.view());
  if (params.numel() == 0) return;
  const Device device = arguments.x.device;
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

int64_t needed(const py::object& x, const std::vector<double>& taps, int64_t ndim, int64_t edge) {
  const DlpackTensor signal(x, std::string(kWhere) + "x");
  const Arguments arguments{signal.view(), taps, ndim, edge, std::nullopt, false, std::nullopt};
  const Shape shape = check(arguments);
  const auto strides = wavelet::row_major(shape.size, shape.rank);
  const TensorView result{nullptr,    arguments.x.dtype, shape.rank,
                          shape.size, strides.data(),    arguments.x.device};
  return scratch_bytes(prepare(arguments, shape, result));
}

const PyRoom room([](py::module_& m) {
  m.def("dwt", &dwt, kDoc, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("taps"), py::arg("ndim"),
        py::arg("edge"), py::arg("scale") = py::none(), py::arg("divide") = false,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("dwt_scratch", &needed, kScratchDoc, py::arg("x"), py::kw_only(), py::arg("taps"), py::arg("ndim"),
        py::arg("edge"));
});

}  // namespace
}  // namespace fastdiff::dwt
