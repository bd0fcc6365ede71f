// SPDX-License-Identifier: Apache-2.0
// combine_tokens for any array library, through DLPack. No torch; the caller gives the memory.
#include "attention/combine_tokens/combine_tokens.h"
#include "core/python.h"

namespace fastdiff::combine_tokens {
namespace {

constexpr const char* kDoc =
    R"(Write weighted sums of tokens over lists of their numbers into `out`.

The same kernels as torch.ops.fastdiff.combine_tokens.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.combine_tokens. For CUDA arrays `stream` is the cudaStream_t to launch on; the call does not wait for
it.)";

void combine_tokens(const py::object& x, const py::object& offsets, const py::object& members,
                    const py::object& out, const py::object& weights, uintptr_t stream) {
  const auto where = [](const char* argument) {
    return std::string("fastdiff::combine_tokens: ") + argument;
  };
  const DlpackTensor tokens(x, where("x"), Access::read, stream),
      bounds(offsets, where("offsets"), Access::read, stream),
      numbers(members, where("members"), Access::read, stream),
      result(out, where("out"), Access::write, stream);
  const OptionalArray factors(weights, where("weights"), Access::read, stream);
  const Arguments arguments{tokens.view(), bounds.view(), numbers.view(), factors.view()};
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
  m.def("combine_tokens", &combine_tokens, kDoc, py::arg("x"), py::arg("offsets"), py::arg("members"),
        py::arg("out"), py::kw_only(), py::arg("weights") = py::none(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::combine_tokens
