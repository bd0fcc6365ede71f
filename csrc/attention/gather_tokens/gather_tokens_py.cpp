// SPDX-License-Identifier: Apache-2.0
// gather_tokens for any array library, through DLPack. No torch; the caller gives the memory.
#include "attention/gather_tokens/gather_tokens.h"
#include "core/python.h"

namespace fastdiff::gather_tokens {
namespace {

constexpr const char* kDoc =
    R"(Write tokens by their numbers, and a residual, into `out`.

The same kernels as torch.ops.fastdiff.gather_tokens.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.gather_tokens. For CUDA arrays `stream` is the cudaStream_t to launch on; the call does not wait for
it.)";

void gather_tokens(const py::object& x, const py::object& index, const py::object& out,
                   const py::object& fill, const py::object& residual, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string("fastdiff::gather_tokens: ") + argument; };
  const DlpackTensor tokens(x, where("x"), Access::read, stream),
      numbers(index, where("index"), Access::read, stream), result(out, where("out"), Access::write, stream);
  const OptionalArray of_fill(fill, where("fill"), Access::read, stream),
      of_residual(residual, where("residual"), Access::read, stream);
  const Arguments arguments{tokens.view(), numbers.view(), of_fill.view(), of_residual.view()};
  check(arguments);
  const Params params = prepare(arguments, result.view());
  if (params.numel() == 0) return;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (arguments.x.device.type != DeviceType::cuda) return isa::run<Cpu>(params, int64_t{0}, params.rows());
#endif
  launch_cuda(params, arguments.x.device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("gather_tokens", &gather_tokens, kDoc, py::arg("x"), py::arg("index"), py::arg("out"), py::kw_only(),
        py::arg("fill") = py::none(), py::arg("residual") = py::none(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::gather_tokens
