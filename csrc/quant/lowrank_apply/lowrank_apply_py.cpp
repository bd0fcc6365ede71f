// SPDX-License-Identifier: Apache-2.0
// lowrank_apply for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "core/python.h"
#include "quant/lowrank_apply/lowrank_apply.h"

namespace fastdiff::lowrank_apply {
namespace {

constexpr const char* kDoc =
    R"(Write a product with a matrix of low rank, gated, beside what it is added to, into `out`.

The same kernels as torch.ops.fastdiff.lowrank_apply.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.lowrank_apply. For CUDA arrays give `scratch`, a uint8 array of lowrank_apply_scratch(x, down, up)
bytes, and as `stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that lowrank_apply needs for CUDA arrays like these.";

constexpr const char* kWhere = "fastdiff::lowrank_apply: ";

std::string where(const char* argument) {
  return std::string(kWhere) + argument;
}

void lowrank_apply(const py::object& x, const py::object& down, const py::object& up, const py::object& out,
                   const py::object& gates, const py::object& offset, const py::object& a,
                   const py::object& mu, const py::object& b, const py::object& base,
                   const py::object& scratch, uintptr_t stream) {
  const DlpackTensor of_x(x, where("x"), Access::read, stream),
      of_down(down, where("down"), Access::read, stream), of_up(up, where("up"), Access::read, stream),
      result(out, where("out"), Access::write, stream);
  const OptionalArray of_gates(gates, where("gates"), Access::read, stream),
      of_offset(offset, where("offset"), Access::read, stream), of_a(a, where("a"), Access::read, stream),
      of_mu(mu, where("mu"), Access::read, stream), of_b(b, where("b"), Access::read, stream),
      of_base(base, where("base"), Access::read, stream);
  const Arguments arguments{of_x.view(), of_down.view(), of_up.view(), of_gates.view(), of_offset.view(),
                            of_a.view(), of_mu.view(),   of_b.view(),  of_base.view()};
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

int64_t needed(const py::object& x, const py::object& down, const py::object& up) {
  const DlpackTensor of_x(x, where("x")), of_down(down, where("down")), of_up(up, where("up"));
  Arguments arguments{};
  arguments.x = of_x.view();
  arguments.down = of_down.view();
  arguments.up = of_up.view();
  check(arguments);
  Params p;
  p.inputs = arguments.x.size(-1);
  p.rank = arguments.down.sizes[0];
  p.outputs = arguments.up.sizes[0];
  p.samples = 1;
  p.rows_of_sample = 1;
  for (int d = 0; d + 1 < arguments.x.rank; ++d) p.rows_of_sample *= arguments.x.sizes[d];
  p.wide = arguments.x.dtype == DType::f64;
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("lowrank_apply", &lowrank_apply, kDoc, py::arg("x"), py::arg("down"), py::arg("up"), py::arg("out"),
        py::kw_only(), py::arg("gates") = py::none(), py::arg("offset") = py::none(),
        py::arg("a") = py::none(), py::arg("mu") = py::none(), py::arg("b") = py::none(),
        py::arg("base") = py::none(), py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("lowrank_apply_scratch", &needed, kScratchDoc, py::arg("x"), py::arg("down"), py::arg("up"));
});

}  // namespace
}  // namespace fastdiff::lowrank_apply
