// SPDX-License-Identifier: Apache-2.0
// int8_conv2d for any array library, through DLPack. No torch; the caller gives the memory.
#include <pybind11/stl.h>

#include <vector>

#include "quant/epilogue_py.h"
#include "quant/int8_conv2d/int8_conv2d.h"

namespace fastdiff::int8_conv2d {
namespace {

constexpr const char* kDoc =
    R"(Write a convolution of int8, with what follows it, into `out`.

The same kernels as torch.ops.fastdiff.int8_conv2d.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.int8_conv2d, and fastdiff.pack_weight for weight, scale, column_sum and zero_point. CUDA arrays need
`scratch`, a uint8 array of int8_conv2d_scratch(...) bytes, and as `stream` the cudaStream_t to launch on; the call does
not wait for it.)";

constexpr const char* kScratchDoc =
    R"(The bytes of `scratch` that int8_conv2d needs on CUDA for x of this shape [B, C, H, W], that shape
[B, outputs, OH, OW] of the result, columns of the product before gating, and padding.)";

constexpr const char* kWhere = "fastdiff::int8_conv2d: ";

using Pair = std::array<int64_t, 2>;
using Shape = std::array<int64_t, 4>;

int64_t needed(const Shape& x, const Shape& y, int64_t columns, const Pair& padding) {
  Params params;
  params.epilogue = quant::largest_epilogue(y[0] * y[2] * y[3], 0, columns, 0, y[0]);
  params.image.batch = x[0];
  params.image.channels = x[1];
  for (int d = 0; d < 2; ++d) {
    params.image.size[d] = x[2 + d];
    params.image.padded[d] = x[2 + d] + 2 * padding[d];
  }
  return place_cuda(params, nullptr);
}

void int8_conv2d(const py::object& x, const py::object& weight, const py::object& scale,
                 const py::object& column_sum, const py::object& out, int64_t columns,
                 const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                 const py::object& x_scale, const py::object& x_zero_point, const py::object& zero_point,
                 const py::object& bias, const py::object& gate, const py::object& residual, int64_t bits,
                 int64_t activation, bool gated, const py::object& scratch, uintptr_t on) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const DlpackTensor image(x, where("x"), Access::read, on),
      panels(weight, where("weight"), Access::read, on), scales(scale, where("scale"), Access::read, on),
      sums(column_sum, where("column_sum"), Access::read, on), y(out, where("out"), Access::write, on);
  const OptionalArray of_scale(x_scale, where("x_scale"), Access::read, on),
      of_zero(x_zero_point, where("x_zero_point"), Access::read, on),
      zeros(zero_point, where("zero_point"), Access::read, on);
  const py::none none;
  const quant::EpilogueArrays epilogue(kWhere, bias, gate, residual, none, none, none, on);
  const Arguments arguments{image.view(),   of_scale.view(),
                            of_zero.view(), panels.view(),
                            scales.view(),  sums.view(),
                            zeros.view(),   epilogue.arguments(activation, gated),
                            columns,        bits,
                            kernel,         stride,
                            padding,        dilation};
  check(arguments);
  Params params = prepare(arguments, y.view());
  if (params.epilogue.rows == 0) return;
  const Device device = y.view().device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<char> memory(static_cast<size_t>(place_cpu(params, kAlone, nullptr)));
    place_cpu(params, kAlone, memory.data());
    return isa::run<Cpu>(params, kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, place_cuda(params, nullptr), device, on);
  place_cuda(params, memory.data());
  const py::gil_scoped_release release;
  launch_cuda(params, device.index, reinterpret_cast<void*>(on));
}

const PyRoom room([](py::module_& m) {
  m.def("int8_conv2d", &int8_conv2d, kDoc, py::arg("x"), py::arg("weight"), py::arg("scale"),
        py::arg("column_sum"), py::arg("out"), py::kw_only(), py::arg("columns"), py::arg("kernel"),
        py::arg("strides") = Pair{1, 1}, py::arg("padding") = Pair{0, 0}, py::arg("dilation") = Pair{1, 1},
        py::arg("x_scale") = py::none(), py::arg("x_zero_point") = py::none(),
        py::arg("zero_point") = py::none(), py::arg("bias") = py::none(), py::arg("gate") = py::none(),
        py::arg("residual") = py::none(), py::arg("bits") = 8, py::arg("activation") = 0,
        py::arg("gated") = false, py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("int8_conv2d_scratch", &needed, kScratchDoc, py::arg("x"), py::arg("out"), py::arg("columns"),
        py::arg("padding"));
});

}  // namespace
}  // namespace fastdiff::int8_conv2d
