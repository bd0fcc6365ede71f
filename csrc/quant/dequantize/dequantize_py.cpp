// SPDX-License-Identifier: Apache-2.0
// dequantize for any array library, through DLPack. No torch; the caller gives the memory.
#include "core/python.h"
#include "quant/dequantize/dequantize.h"

namespace fastdiff::dequantize {
namespace {

constexpr const char* kDoc =
    R"(Write numbers of int8 into `out`, in its dtype.

The same kernels as torch.ops.fastdiff.dequantize.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.dequantize. For CUDA arrays `stream` is the cudaStream_t to launch on; the call does not wait for
it.)";

void dequantize(const py::object& q, const py::object& scale, const py::object& out,
                const py::object& zero_point, const py::object& step, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string("fastdiff::dequantize: ") + argument; };
  const DlpackTensor bytes(q, where("q"), Access::read, stream),
      of_scale(scale, where("scale"), Access::read, stream), result(out, where("out"), Access::write, stream);
  const OptionalArray of_zero(zero_point, where("zero_point"), Access::read, stream),
      of_step(step, where("step"), Access::read, stream);
  const Arguments arguments{
      bytes.view(), {of_scale.view(), of_zero.view(), of_step.view()}, result.view().dtype};
  check(arguments);
  const quant::Elements elements = prepare(arguments, result.view());
  if (elements.total() == 0) return;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (arguments.q.device.type != DeviceType::cuda)
    return isa::run<Cpu>(elements, int64_t{0}, elements.total());
#endif
  launch_cuda(elements, arguments.q.device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("dequantize", &dequantize, kDoc, py::arg("q"), py::arg("scale"), py::arg("out"), py::kw_only(),
        py::arg("zero_point") = py::none(), py::arg("step") = py::none(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::dequantize
