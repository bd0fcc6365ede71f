// SPDX-License-Identifier: Apache-2.0
// cached_residual_add for any array library, through DLPack. No torch, no allocation: the caller gives the
// memory.
#include <pybind11/stl.h>

#include <list>
#include <vector>

#include "attention/cached_residual_add/cached_residual_add.h"
#include "core/python.h"

namespace fastdiff::cached_residual_add {
namespace {

constexpr const char* kDoc =
    R"(Write h + sum of gate * component over all components into `out`.

The same kernels as torch.ops.fastdiff.cached_residual_add.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...); `gate_of` has for each component the number of its gate, or -1. See fastdiff.cached_residual_add. For CUDA
arrays give as `stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kWhere = "fastdiff::cached_residual_add: ";

// The arrays of a list, for as long as this object lives.
class Arrays {
 public:
  Arrays(const py::list& arrays, const char* argument, uintptr_t stream) {
    for (const py::handle array : arrays) {
      const std::string where = std::string(kWhere) + argument + "[" + std::to_string(views.size()) + "]";
      views.push_back(held_.emplace_back(array, where, Access::read, stream).view());
    }
  }
  std::vector<TensorView> views;

 private:
  std::list<DlpackTensor> held_;
};

void cached_residual_add(const py::object& h, const py::list& components, const py::list& gates,
                         const std::vector<int64_t>& gate_of, const py::object& out, uintptr_t stream) {
  const DlpackTensor state(h, std::string(kWhere) + "h", Access::read, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const Arrays cached(components, "components", stream), factors(gates, "gates", stream);
  const Arguments arguments{state.view(), cached.views, factors.views, gate_of};
  const Params params = prepare(arguments, check(arguments), result.view());
  if (params.numel == 0) return;
  const Device device = arguments.h.device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params, int64_t{0}, params.numel);
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("cached_residual_add", &cached_residual_add, kDoc, py::arg("h"), py::arg("components"),
        py::arg("gates"), py::arg("gate_of"), py::arg("out"), py::kw_only(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::cached_residual_add
