// SPDX-License-Identifier: Apache-2.0
// linear_step for any array library, through DLPack. No torch, no allocation: the caller gives the outputs.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <vector>

#include "core/python.h"
#include "solver/linear_step/linear_step.h"

namespace fastdiff::linear_step {
namespace {

constexpr const char* kDoc =
    R"(Write the stored rows of a triangular program of linear combinations into `out`.

The same kernels as torch.ops.fastdiff.linear_step.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...). See fastdiff.linear_step for shapes and formula. `out` has one array per row, None where a row is
not stored. `stream` is the cudaStream_t to launch on, for CUDA arrays; the call does not wait for it.)";

class Arrays {
 public:
  explicit Arrays(uintptr_t stream) : stream_(stream) {}

  const TensorView& add(py::handle array, const Argument& argument, Access access = Access::read) {
    held_.push_back(
        std::make_unique<DlpackTensor>(array, "fastdiff::linear_step: " + argument.text(), access, stream_));
    return held_.back()->view();
  }

  const TensorView* add_optional(py::handle array, const char* name) {
    return array.is_none() ? nullptr : &add(array, name);
  }

 private:
  uintptr_t stream_;
  std::vector<std::unique_ptr<DlpackTensor>> held_;
};

// One OS thread: array libraries bring no thread pool to share, and callers can split the batch.
void run(const Params& params, Device device, uintptr_t stream) {
  const int64_t total = params.samples * params.numel;
  if (total == 0) return;
#if FASTDIFF_SIMT
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
#else
  if (device.type == DeviceType::cuda)
    return launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
  isa::run<Cpu>(params, int64_t{0}, total);
#endif
}

void linear_step(const std::vector<py::object>& inputs, const py::object& table,
                 const std::vector<py::object>& out, const py::object& step, const py::object& rng,
                 const py::object& gate_table, const py::object& mask, const std::vector<int64_t>& channels,
                 const py::object& maps, const std::vector<int64_t>& map_index, uintptr_t stream) {
  Arrays arrays(stream);
  Arguments arguments;
  std::vector<TensorView> views, outputs;
  std::vector<int> store;
  for (const py::object& x : inputs)
    views.push_back(arrays.add(x, {"inputs", static_cast<int64_t>(views.size())}));
  for (const py::object& y : out) {
    if (!y.is_none())
      outputs.push_back(arrays.add(y, {"out", static_cast<int64_t>(store.size())}, Access::write));
    store.push_back(y.is_none() ? -1 : static_cast<int>(outputs.back().dtype));
  }
  arguments.inputs = views;
  arguments.table = arrays.add(table, "table");
  arguments.step = arrays.add_optional(step, "step");
  arguments.rng = arrays.add_optional(rng, "rng");
  arguments.gate_table = arrays.add_optional(gate_table, "gate_table");
  arguments.mask = arrays.add_optional(mask, "mask");
  arguments.maps = arrays.add_optional(maps, "maps");
  arguments.channels = channels;
  arguments.map_index = map_index;
  arguments.store = store;
  const Shape shape = check(arguments);
  const Params params = prepare(arguments, shape, outputs);
  const py::gil_scoped_release release;
  run(params, views[0].device, stream);
}

const PyRoom room([](py::module_& m) {
  m.def("linear_step", &linear_step, kDoc, py::arg("inputs"), py::arg("table"), py::arg("out"), py::kw_only(),
        py::arg("step") = py::none(), py::arg("rng") = py::none(), py::arg("gate_table") = py::none(),
        py::arg("mask") = py::none(), py::arg("channels") = std::vector<int64_t>{},
        py::arg("maps") = py::none(), py::arg("map_index") = std::vector<int64_t>{}, py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::linear_step
