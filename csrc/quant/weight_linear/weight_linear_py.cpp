// SPDX-License-Identifier: Apache-2.0
// weight_linear for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "quant/epilogue_py.h"
#include "quant/weight_linear/weight_linear.h"

namespace fastdiff::weight_linear {
namespace {

constexpr const char* kDoc =
    R"(Write x W^T of a weight that is decoded on the way, with what follows it, into `out`.

The same kernels as torch.ops.fastdiff.weight_linear.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.weight_linear, and fastdiff.pack_weight for weight, scale and zero_point; `scheme` is 0 (int8),
1 (int4), 2 (bf16) or 3 (fp8), of which `round_x` rounds x to e4m3; then x may also be bytes of e4m3, with x_scale.
CUDA arrays need `scratch`, a uint8 array of weight_linear_scratch(...) bytes, and as `stream` the cudaStream_t to
launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    R"(The bytes of `scratch` that weight_linear needs on CUDA for so many rows of x, elements in them, columns of the
result before gating, rows of `down` and samples.)";

constexpr const char* kWhere = "fastdiff::weight_linear: ";

int64_t needed(int64_t rows, int64_t inner, int64_t columns, int64_t rank, int64_t samples) {
  Params params;
  params.rounds = true;
  params.epilogue = quant::largest_epilogue(rows, inner, columns, rank, samples);
  return place_cuda(params, nullptr);
}

void weight_linear(const py::object& x, const py::object& weight, const py::object& out, int64_t columns,
                   int64_t scheme, int64_t group, const py::object& scale, const py::object& zero_point,
                   const py::object& x_scale, bool round_x, const py::object& bias, const py::object& gate,
                   const py::object& residual, const py::object& down, const py::object& up,
                   const py::object& gates, int64_t activation, bool gated, const py::object& scratch,
                   uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const DlpackTensor rows(x, where("x"), Access::read, stream),
      panels(weight, where("weight"), Access::read, stream), y(out, where("out"), Access::write, stream);
  const OptionalArray row_scales(x_scale, where("x_scale"), Access::read, stream),
      scales(scale, where("scale"), Access::read, stream),
      zeros(zero_point, where("zero_point"), Access::read, stream);
  const quant::EpilogueArrays epilogue(kWhere, bias, gate, residual, down, up, gates, stream);
  const Arguments arguments{rows.view(),   row_scales.view(),
                            panels.view(), scales.view(),
                            zeros.view(),  epilogue.arguments(activation, gated),
                            columns,       scheme,
                            group,         round_x};
  check(arguments);
  Params params = prepare(arguments, y.view());
  if (params.epilogue.rows == 0) return;
  const Device device = y.view().device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<char> memory(static_cast<size_t>(place_cpu(params, kAlone, nullptr)));
    place_cpu(params, kAlone, memory.data());
    return isa::run<Cpu>(params, kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, place_cuda(params, nullptr), device, stream);
  place_cuda(params, memory.data());
  const py::gil_scoped_release release;
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("weight_linear", &weight_linear, kDoc, py::arg("x"), py::arg("weight"), py::arg("out"), py::kw_only(),
        py::arg("columns"), py::arg("scheme"), py::arg("group") = 0, py::arg("scale") = py::none(),
        py::arg("zero_point") = py::none(), py::arg("x_scale") = py::none(), py::arg("round_x") = false,
        py::arg("bias") = py::none(), py::arg("gate") = py::none(), py::arg("residual") = py::none(),
        py::arg("down") = py::none(), py::arg("up") = py::none(), py::arg("gates") = py::none(),
        py::arg("activation") = 0, py::arg("gated") = false, py::arg("scratch") = py::none(),
        py::arg("stream") = 0);
  m.def("weight_linear_scratch", &needed, kScratchDoc, py::arg("rows"), py::arg("inner"), py::arg("columns"),
        py::kw_only(), py::arg("rank") = 0, py::arg("samples") = 1);
});

}  // namespace
}  // namespace fastdiff::weight_linear
