// SPDX-License-Identifier: Apache-2.0
// A Python extension with one honest function and some that break the worker in each of the ways there are.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/python.h"
#include "for_worker.h"

namespace for_worker {
namespace {

namespace py = pybind11;
using fastdiff::Access;
using fastdiff::DlpackTensor;
using fastdiff::TensorView;

void run_twice(const py::object& x, const py::object& out, int first, int n) {
  const DlpackTensor from(x, "x", Access::read), to(out, "out", Access::write);
  twice(static_cast<const float*>(from.view().data), static_cast<float*>(to.view().data), first, n);
}

void write_to_input(const py::object& x) {
  const DlpackTensor array(x, "x", Access::read);
  auto* data = static_cast<float*>(array.view().data);
  twice(data, data, 0, 1);
}

// what a tensor looks like from here: (address % 16, sizes, strides, dtype)
py::tuple describe(const py::object& x) {
  const DlpackTensor array(x, "x", Access::read);
  const TensorView& view = array.view();
  const std::vector<int64_t> sizes(view.sizes, view.sizes + view.rank),
      strides(view.strides, view.strides + view.rank);
  return py::make_tuple(reinterpret_cast<uintptr_t>(view.data) % 16, sizes, strides,
                        fastdiff::name(view.dtype));
}

py::object echo(const py::object& value) {
  return value;
}

void raise_value_error(const std::string& message) {
  throw py::value_error(message);
}

void hang() {
  for (volatile bool forever = true; forever;) {
  }
}

}  // namespace
}  // namespace for_worker

PYBIND11_MODULE(FASTDIFF_MODULE_NAME, m) {
  using namespace for_worker;
  m.def("twice", &run_twice, py::arg("x"), py::arg("out"), py::arg("first"), py::arg("n"));
  m.def("write_to_input", &write_to_input);
  m.def("describe", &describe);
  m.def("echo", &echo);
  m.def("raise_value_error", &raise_value_error);
  m.def("hang", &hang);
}
