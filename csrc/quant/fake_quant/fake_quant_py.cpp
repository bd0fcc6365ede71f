// SPDX-License-Identifier: Apache-2.0
// fake_quant for any array library, through DLPack. No torch; the caller gives the memory.
#include "core/python.h"
#include "quant/fake_quant/fake_quant.h"

namespace fastdiff::fake_quant {
namespace {

constexpr const char* kDoc =
    R"(Write numbers as they are after quantisation into `out`, or the gradient of that.

The same kernels as torch.ops.fastdiff.fake_quant.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.fake_quant. For CUDA arrays `stream` is the cudaStream_t to launch on; the call does not wait for
it.)";

void fake_quant(const py::object& x, const py::object& scale, const py::object& out,
                const py::object& zero_point, const py::object& step, int64_t quant_min, int64_t quant_max,
                const py::object& gradient, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string("fastdiff::fake_quant: ") + argument; };
  const DlpackTensor numbers(x, where("x"), Access::read, stream),
      of_scale(scale, where("scale"), Access::read, stream), result(out, where("out"), Access::write, stream);
  const OptionalArray of_zero(zero_point, where("zero_point"), Access::read, stream),
      of_step(step, where("step"), Access::read, stream),
      of_gradient(gradient, where("gradient"), Access::read, stream);
  const Arguments arguments{numbers.view(),
                            {of_scale.view(), of_zero.view(), of_step.view()},
                            quant_min,
                            quant_max,
                            of_gradient.view()};
  check(arguments);
  const quant::Elements elements = prepare(arguments, result.view());
  if (elements.total() == 0) return;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (arguments.x.device.type != DeviceType::cuda)
    return isa::run<Cpu>(elements, int64_t{0}, elements.total());
#endif
  launch_cuda(elements, arguments.x.device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("fake_quant", &fake_quant, kDoc, py::arg("x"), py::arg("scale"), py::arg("out"), py::kw_only(),
        py::arg("zero_point") = py::none(), py::arg("step") = py::none(), py::arg("quant_min") = -127,
        py::arg("quant_max") = 127, py::arg("gradient") = py::none(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::fake_quant
