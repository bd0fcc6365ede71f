// SPDX-License-Identifier: Apache-2.0
// quantize_static for any array library, through DLPack. No torch; the caller gives the memory.
#include "quant/norm_row_py.h"
#include "quant/quantize_static/quantize_static.h"

namespace fastdiff::quantize_static {
namespace {

constexpr const char* kDoc =
    R"(Write activations as int8 with a known scale and zero point into `out`.

The same kernels as torch.ops.fastdiff.quantize_static.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.quantize_static. For CUDA arrays `stream` is the cudaStream_t to launch on; the call does not wait
for it.)";

void quantize_static(const py::object& x, const py::object& scale, const py::object& out,
                     const py::object& zero_point, const py::object& step, int64_t quant_min,
                     int64_t quant_max, const py::object& eps, bool rms, const py::object& weight,
                     const py::object& bias, const py::object& scale_by, const py::object& shift,
                     uintptr_t stream) {
  const std::string where = "fastdiff::quantize_static: ";
  const DlpackTensor numbers(x, where + "x", Access::read, stream),
      of_scale(scale, where + "scale", Access::read, stream),
      result(out, where + "out", Access::write, stream);
  const OptionalArray of_zero(zero_point, where + "zero_point", Access::read, stream),
      of_step(step, where + "step", Access::read, stream);
  const quant::NormArrays norm(where, eps, rms, weight, bias, scale_by, shift, stream);
  const Arguments arguments{numbers.view(),
                            {of_scale.view(), of_zero.view(), of_step.view()},
                            quant_min,
                            quant_max,
                            norm.arguments()};
  check(arguments);
  const Params params = prepare(arguments, result.view());
  if (params.total() == 0) return;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (arguments.x.device.type != DeviceType::cuda) return isa::run<Cpu>(params, int64_t{0}, params.total());
#endif
  launch_cuda(params, arguments.x.device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("quantize_static", &quantize_static, kDoc, py::arg("x"), py::arg("scale"), py::arg("out"),
        py::kw_only(), py::arg("zero_point") = py::none(), py::arg("step") = py::none(),
        py::arg("quant_min") = -127, py::arg("quant_max") = 127, py::arg("eps") = py::none(),
        py::arg("rms") = false, py::arg("weight") = py::none(), py::arg("bias") = py::none(),
        py::arg("scale_by") = py::none(), py::arg("shift") = py::none(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::quantize_static
