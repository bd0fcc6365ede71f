// SPDX-License-Identifier: Apache-2.0
// haar_patch for any array library, through DLPack. No torch, no allocation: the caller gives the memory.
#include "core/python.h"
#include "wavelet/haar_patch/haar_patch.h"

namespace fastdiff::haar_patch {
namespace {

constexpr const char* kDoc =
    R"(Write the Haar wavelet packet of the patches of a video, or the video that has it, into `out`.

The same kernels as torch.ops.fastdiff.haar_patch.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...). See fastdiff.haar_patch. `stream` is the cudaStream_t to launch on, for CUDA arrays; the call does
not wait for it.)";

constexpr const char* kWhere = "fastdiff::haar_patch: ";

void haar_patch(const py::object& x, int64_t patch, const py::object& out, bool inverse, bool adjoint,
                uintptr_t stream) {
  const DlpackTensor source(x, std::string(kWhere) + "x", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const Arguments arguments{source.view(), patch, inverse, adjoint};
  const Params params = prepare(arguments, check(arguments), result.view());
  if (result.view().numel() == 0) return;
  const Device device = source.view().device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params, int64_t{0}, params.lines());
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("haar_patch", &haar_patch, kDoc, py::arg("x"), py::arg("patch"), py::arg("out"), py::kw_only(),
        py::arg("inverse") = false, py::arg("adjoint") = false, py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::haar_patch
