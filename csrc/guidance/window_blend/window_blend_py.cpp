// SPDX-License-Identifier: Apache-2.0
// window_blend for any array library, through DLPack. No torch, no allocation: the caller gives the memory.
#include <pybind11/stl.h>

#include "core/python.h"
#include "guidance/window_blend/window_blend.h"

namespace fastdiff::window_blend {
namespace {

constexpr const char* kDoc =
    R"(Write the weighted mean of the views over each pixel into `out`.

The same kernels as torch.ops.fastdiff.window_blend.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...). See fastdiff.window_blend. `table`: the numbers of window_blend_table as an int64 array, on the
device of the views. `stream` is the cudaStream_t to launch on, for CUDA arrays; the call does not wait for it.)";

constexpr const char* kTableDoc =
    R"(Which views are over which part of the image, as numbers for window_blend; build it once for a set of boxes.

boxes: one (y0, y1, x0, x1) for each view of `views`, all their numbers in one list. size: (H, W) of the image.
circular: boxes may wrap around in x. cuda: for CUDA arrays; their kernels have another order.)";

constexpr const char* kWhere = "fastdiff::window_blend: ";

// Which kernels run: under the emulator, those of CUDA.
DeviceType kernels_of([[maybe_unused]] Device device) {
#if FASTDIFF_SIMT
  return DeviceType::cuda;
#else
  return device.type;
#endif
}

void window_blend(const py::object& views, const py::object& table, const py::object& out,
                  const py::object& weights, uintptr_t stream) {
  const DlpackTensor x(views, std::string(kWhere) + "views", Access::read, stream);
  const DlpackTensor lists(table, std::string(kWhere) + "table", Access::read, stream);
  const DlpackTensor y(out, std::string(kWhere) + "out", Access::write, stream);
  std::optional<DlpackTensor> w;
  if (!weights.is_none()) w.emplace(weights, std::string(kWhere) + "weights", Access::read, stream);
  const TensorView& result = y.view();
  const Arguments arguments = arguments_for(result, x.view(), w ? &w->view() : nullptr);
  const Shape shape = check(arguments);
  const Device device = x.view().device;
  check_table(arguments, lists.view(), kernels_of(device));
  const Params params = prepare(arguments, shape, result, static_cast<const int64_t*>(lists.view().data),
                                lists.view().numel(), tile_of(kernels_of(device)));
  if (result.numel() == 0) return;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params, int64_t{0}, params.units());
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

std::vector<int64_t> table_of(const py::object& views, const std::vector<int64_t>& boxes,
                              const std::pair<int64_t, int64_t>& size, bool circular, bool cuda) {
  const DlpackTensor x(views, std::string(kWhere) + "views");
  const Arguments arguments{x.view(), nullptr, size.first, size.second};
  check(arguments);
  return make_table(arguments, {boxes, circular}, tile_of(cuda ? DeviceType::cuda : DeviceType::cpu));
}

const PyRoom room([](py::module_& m) {
  m.def("window_blend", &window_blend, kDoc, py::arg("views"), py::arg("table"), py::arg("out"),
        py::kw_only(), py::arg("weights") = py::none(), py::arg("stream") = 0);
  m.def("window_blend_table", &table_of, kTableDoc, py::arg("views"), py::arg("boxes"), py::arg("size"),
        py::kw_only(), py::arg("circular") = false, py::arg("cuda") = false);
});

}  // namespace
}  // namespace fastdiff::window_blend
