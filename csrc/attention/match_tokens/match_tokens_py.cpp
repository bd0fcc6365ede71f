// SPDX-License-Identifier: Apache-2.0
// match_tokens for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "attention/match_tokens/match_tokens.h"
#include "core/python.h"

namespace fastdiff::match_tokens {
namespace {

constexpr const char* kDoc =
    R"(Write the highest cosine similarity of each token of `a` with the tokens of `b`, and whose it is, into the two arrays
of `out`, score and index.

The same kernels as torch.ops.fastdiff.match_tokens.out, for arrays of any library that speaks DLPack (NumPy, CuPy, ...).
See fastdiff.match_tokens. For CUDA arrays give `scratch`, a uint8 array of match_tokens_scratch(a, b) bytes, and as
`stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that match_tokens needs for CUDA arrays like a and b.";

constexpr const char* kWhere = "fastdiff::match_tokens: ";

void match_tokens(const py::object& a, const py::object& b, const py::sequence& out,
                  const py::object& scratch, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  if (py::len(out) != 2)
    throw py::value_error(where("out must be two arrays, score and index, got ") +
                          std::to_string(py::len(out)));
  const DlpackTensor rows(a, where("a"), Access::read, stream), columns(b, where("b"), Access::read, stream),
      highest(out[0], where("score"), Access::write, stream),
      numbers(out[1], where("index"), Access::write, stream);
  const Arguments arguments{rows.view(), columns.view()};
  check(arguments);
  const Params params = prepare(arguments, highest.view(), numbers.view());
  if (params.numel() == 0) return;
  const Device device = arguments.a.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(cpu_scratch_bytes(params, 1)) / sizeof(double) + 1);
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, cuda_scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& a, const py::object& b) {
  const DlpackTensor rows(a, std::string(kWhere) + "a"), columns(b, std::string(kWhere) + "b");
  const Arguments arguments{rows.view(), columns.view()};
  check(arguments);
  Params p;
  p.samples = arguments.a.sizes[0];
  p.rows = arguments.a.sizes[1];
  p.columns = arguments.b.sizes[1];
  p.channels = arguments.a.sizes[2];
  p.wide = arguments.a.dtype == DType::f64;
  return cuda_scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("match_tokens", &match_tokens, kDoc, py::arg("a"), py::arg("b"), py::arg("out"), py::kw_only(),
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("match_tokens_scratch", &needed, kScratchDoc, py::arg("a"), py::arg("b"));
});

}  // namespace
}  // namespace fastdiff::match_tokens
