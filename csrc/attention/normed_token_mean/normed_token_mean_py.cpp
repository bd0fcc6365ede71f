// SPDX-License-Identifier: Apache-2.0
// normed_token_mean for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "attention/normed_token_mean/normed_token_mean.h"
#include "core/python.h"

namespace fastdiff::normed_token_mean {
namespace {

constexpr const char* kDoc =
    R"(Write the mean over tokens of their layer norm, modulated, into `out`.

The same kernels as torch.ops.fastdiff.normed_token_mean.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...). See fastdiff.normed_token_mean. For CUDA arrays give `scratch`, a uint8 array of
normed_token_mean_scratch(x) bytes, and as `stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that normed_token_mean needs for a CUDA array like x.";

constexpr const char* kWhere = "fastdiff::normed_token_mean: ";

void normed_token_mean(const py::object& x, const py::object& out, const py::object& scale,
                       const py::object& shift, double eps, const py::object& scratch, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const DlpackTensor tokens(x, where("x"), Access::read, stream),
      result(out, where("out"), Access::write, stream);
  const OptionalArray of_scale(scale, where("scale"), Access::read, stream),
      of_shift(shift, where("shift"), Access::read, stream);
  const Arguments arguments{tokens.view(), of_scale.view(), of_shift.view(), eps};
  check(arguments);
  const Params params = prepare(arguments, result.view());
  if (params.numel() == 0) return;
  const Device device = arguments.x.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(scratch_bytes(params)) / sizeof(double) + 1);
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& x) {
  const DlpackTensor tokens(x, std::string(kWhere) + "x");
  const TensorView& view = tokens.view();
  check({view, std::nullopt, std::nullopt, 0});
  Params p;
  p.dtype = view.dtype;
  p.samples = view.sizes[0];
  p.tokens = view.sizes[1];
  p.dim = static_cast<int>(view.sizes[2]);
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("normed_token_mean", &normed_token_mean, kDoc, py::arg("x"), py::arg("out"), py::kw_only(),
        py::arg("scale") = py::none(), py::arg("shift") = py::none(), py::arg("eps") = 1e-6,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("normed_token_mean_scratch", &needed, kScratchDoc, py::arg("x"));
});

}  // namespace
}  // namespace fastdiff::normed_token_mean
