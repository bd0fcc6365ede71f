// SPDX-License-Identifier: Apache-2.0
// linear_step for any array library, through DLPack. No torch, no allocation: the caller gives the outputs.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <vector>

#include "core/exchange.h"
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

// ---- a step of a plan
// --------------------------------------------------------------------------------------

constexpr const char* kIntoDoc =
    R"(linear_step_into(inputs, table, step, store, rng, gate_table, mask, results) -> bool

torch.ops.fastdiff.linear_step.out for the caller who runs it thousands of times on small tensors: without the
dispatcher, and so without whatever the dispatcher would do (gradients, modes, subclasses). False: not written,
because a tensor cannot be read this way or is large enough to be worth more threads; call the operator.)";

// The arguments of one call as views, read through the exchange table. No allocation.
class Borrowed {
 public:
  // False: one of them cannot be borrowed.
  bool add_all(PyObject* list, TensorView* views) {
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(list); ++n)
      if (!add(PyList_GET_ITEM(list, n), views[n])) return false;
    return true;
  }

  bool add(PyObject* object, TensorView& view) {
    static Exchange exchange;
    if (!exchange.reads(object) || !exchange.borrow(object, tensors_[count_])) return false;
    exchange_ = &exchange;
    return dlpack_view(tensors_[count_++], view);
  }

  bool add_optional(PyObject* object, TensorView& view, const TensorView*& given) {
    if (object == Py_None) return true;
    given = &view;
    return add(object, view);
  }

  void* stream(Device device, bool& known) const {
    void* stream = nullptr;
    known = exchange_->current_stream(device, &stream);
    return stream;
  }

 private:
  static constexpr int kMost = kMaxInputs + kMaxRows + 5;
  dlpack::Tensor tensors_[kMost];
  int count_ = 0;
  const Exchange* exchange_ = nullptr;
};

// What launches a step, or std::nullopt-like false where the operator has to.
bool try_into(PyObject* const* args) {
  PyObject *inputs = args[0], *store = args[3], *results = args[7];
  if (!PyList_CheckExact(inputs) || !PyList_CheckExact(store) || !PyList_CheckExact(results)) return false;
  const Py_ssize_t count = PyList_GET_SIZE(inputs), rows = PyList_GET_SIZE(store),
                   stored = PyList_GET_SIZE(results);
  if (count < 1 || count > kMaxInputs || rows > kMaxRows || stored > rows) return false;

  Borrowed borrowed;
  TensorView x[kMaxInputs], y[kMaxRows], step, rng, gate_table, mask;
  Arguments a;
  if (!borrowed.add_all(inputs, x) || !borrowed.add_all(results, y) || !borrowed.add(args[1], a.table) ||
      !borrowed.add_optional(args[2], step, a.step) || !borrowed.add_optional(args[4], rng, a.rng) ||
      !borrowed.add_optional(args[5], gate_table, a.gate_table) ||
      !borrowed.add_optional(args[6], mask, a.mask))
    return false;

  int dtypes[kMaxRows];
  for (Py_ssize_t i = 0, o = 0; i < rows; ++i) {
    const bool is_stored = PyLong_AsLong(PyList_GET_ITEM(store, i)) >= 0;
    if (is_stored && o == stored) return false;
    dtypes[i] = is_stored ? static_cast<int>(y[o++].dtype) : -1;
  }
  const Device device = x[0].device;
  const bool cuda = device.type == DeviceType::cuda;
  for (Py_ssize_t k = 0; k < count; ++k)
    if (!cuda && x[k].numel() >= kSerialNumel) return false;

  a.inputs = {x, static_cast<size_t>(count)};
  a.store = {dtypes, static_cast<size_t>(rows)};
  const Params params = prepare(a, check(a), {y, static_cast<size_t>(stored)});
  bool stream_is_known = true;
  void* stream = cuda ? borrowed.stream(device, stream_is_known) : nullptr;
  if (!stream_is_known) return false;
  if (params.samples * params.numel > 0) run(params, device, reinterpret_cast<uintptr_t>(stream));
  return true;
}

PyObject* into(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 8) {
    PyErr_SetString(PyExc_TypeError, "linear_step_into takes 8 arguments");
    return nullptr;
  }
  try {
    return PyBool_FromLong(try_into(args));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// NOTE: not by m.def, whose calls cost a microsecond, a third of a small step.
PyMethodDef into_definition = {"linear_step_into",
                               reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&into)),
                               METH_FASTCALL, kIntoDoc};

const PyRoom room([](py::module_& m) {
  m.add_object("linear_step_into",
               py::reinterpret_steal<py::object>(PyCFunction_NewEx(&into_definition, nullptr, nullptr)));
  m.def("linear_step", &linear_step, kDoc, py::arg("inputs"), py::arg("table"), py::arg("out"), py::kw_only(),
        py::arg("step") = py::none(), py::arg("rng") = py::none(), py::arg("gate_table") = py::none(),
        py::arg("mask") = py::none(), py::arg("channels") = std::vector<int64_t>{},
        py::arg("maps") = py::none(), py::arg("map_index") = std::vector<int64_t>{}, py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::linear_step
