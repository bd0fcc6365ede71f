// SPDX-License-Identifier: Apache-2.0
// channel_affine for any array library, through DLPack. No torch, no allocation: the caller gives the memory.
#include <vector>

#include "core/python.h"
#include "guidance/channel_affine/channel_affine.h"

namespace fastdiff::channel_affine {
namespace {

constexpr const char* kDoc =
    R"(Write x, each channel of each sample moved to the mean and deviation of `style`, or to `mean` and `std`, into `out`.

The same kernels as torch.ops.fastdiff.channel_affine.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...); mean and std are arrays too. See fastdiff.channel_affine. For CUDA arrays give `scratch`, a
uint8 array of channel_affine_scratch(x, style) bytes, and as `stream` the cudaStream_t to launch on; the call does
not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that channel_affine needs for CUDA arrays like these.";

constexpr const char* kWhere = "fastdiff::channel_affine: ";

void channel_affine(const py::object& x, const py::object& out, const py::object& style,
                    const py::object& mean, const py::object& std, double style_weight, double content_weight,
                    double eps, const py::object& scratch, uintptr_t stream) {
  const DlpackTensor content(x, std::string(kWhere) + "x", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const auto optional = [stream](const py::object& array, const char* argument) {
    return OptionalArray(array, std::string(kWhere) + argument, Access::read, stream);
  };
  const OptionalArray of_style = optional(style, "style"), of_mean = optional(mean, "mean"),
                      of_std = optional(std, "std");
  const Arguments arguments{
      content.view(), of_style.view(), of_mean.view(), of_std.view(), style_weight, content_weight, eps};
  const Params params = prepare(arguments, check(arguments), result.view());
  if (params.samples * params.channels * params.x.numel == 0) return;
  const Device device = arguments.x.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(cpu_scratch_bytes(params, 1)) / sizeof(double));
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

// As if the planes were dense: only their sizes count.
void add_sizes(const TensorView& view, int64_t& samples, int64_t& channels, Planes& planes) {
  samples = view.rank > 0 ? view.sizes[0] : 1;
  channels = view.rank > 1 ? view.sizes[1] : 1;
  planes.numel = samples * channels == 0 ? 0 : view.numel() / (samples * channels);
}

int64_t needed(const py::object& x, const py::object& style) {
  const DlpackTensor content(x, std::string(kWhere) + "x");
  Params p;
  add_sizes(content.view(), p.samples, p.channels, p.x);
  if (!style.is_none()) {
    const DlpackTensor other(style, std::string(kWhere) + "style");
    int64_t channels = 0;
    add_sizes(other.view(), p.style_samples, channels, p.style);
  }
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("channel_affine", &channel_affine, kDoc, py::arg("x"), py::arg("out"), py::arg("style") = py::none(),
        py::kw_only(), py::arg("mean") = py::none(), py::arg("std") = py::none(),
        py::arg("style_weight") = 1.0, py::arg("content_weight") = 0.0, py::arg("eps") = 1e-4,
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("channel_affine_scratch", &needed, kScratchDoc, py::arg("x"), py::arg("style") = py::none());
});

}  // namespace
}  // namespace fastdiff::channel_affine
