// SPDX-License-Identifier: Apache-2.0
// quantize_per_token for any array library, through DLPack. No torch; the caller gives the memory.
#include "quant/norm_row_py.h"
#include "quant/quantize_per_token/quantize_per_token.h"

namespace fastdiff::quantize_per_token {
namespace {

constexpr const char* kDoc =
    R"(Write activations as int8 into `q` and the scale of each row into `scale`.

The same kernels as torch.ops.fastdiff.quantize_per_token.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...). See fastdiff.quantize_per_token. For CUDA arrays `stream` is the cudaStream_t to launch on; the call does
not wait for it.)";

void quantize_per_token(const py::object& x, const std::pair<py::object, py::object>& out,
                        const py::object& eps, bool rms, const py::object& weight, const py::object& bias,
                        const py::object& scale_by, const py::object& shift, uintptr_t stream) {
  const std::string where = "fastdiff::quantize_per_token: ";
  const DlpackTensor tokens(x, where + "x", Access::read, stream),
      q(out.first, where + "q", Access::write, stream),
      scale(out.second, where + "scale", Access::write, stream);
  const quant::NormArrays norm(where, eps, rms, weight, bias, scale_by, shift, stream);
  const Arguments arguments{tokens.view(), norm.arguments()};
  check(arguments);
  const Params params = prepare(arguments, q.view(), scale.view());
  if (params.rows.rows == 0) return;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (arguments.x.device.type != DeviceType::cuda) return isa::run<Cpu>(params, int64_t{0}, params.rows.rows);
#endif
  launch_cuda(params, arguments.x.device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("quantize_per_token", &quantize_per_token, kDoc, py::arg("x"), py::arg("out"), py::kw_only(),
        py::arg("eps") = py::none(), py::arg("rms") = false, py::arg("weight") = py::none(),
        py::arg("bias") = py::none(), py::arg("scale_by") = py::none(), py::arg("shift") = py::none(),
        py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::quantize_per_token
