// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "attention/block_sparse_attention/block_sparse_attention.h"
#include "attention/plan_py.h"

namespace fastdiff::block_sparse_attention {
namespace {

constexpr const char* kDoc =
    R"(Write softmax attention over the blocks of a plan, and its log-sum-exp, into the arrays `out` = (out, lse).

The same kernels as torch.ops.fastdiff.block_sparse_attention.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.block_sparse_attention, and fastdiff.AttentionPlan for offsets, columns, masks and
bits. For CUDA arrays give as `stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kWhere = "fastdiff::block_sparse_attention: ";

void block_sparse_attention(const py::object& q, const py::object& k, const py::object& v,
                            const py::object& offsets, const py::object& columns, const py::sequence& out,
                            const py::object& masks, const py::object& bits, int64_t block_q, int64_t block_k,
                            const py::object& bias, double scale, const py::object& q_index,
                            const py::object& kv_index, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const attention::TokenArrays tokens(kWhere, q, k, v, q_index, kv_index, stream);
  const attention::PlanArrays plan(kWhere, offsets, columns, masks, bits, stream);
  const OptionalArray biases(bias, where("bias"), Access::read, stream);
  if (py::len(out) != 2)
    throw py::value_error(where("out must be two arrays, out and lse, got ") + std::to_string(py::len(out)));
  const DlpackTensor result(out[0], where("out"), Access::write, stream),
      lse(out[1], where("lse"), Access::write, stream);
  const Arguments arguments{tokens.tokens(), plan.arguments(block_q, block_k), biases.view(), scale};
  const Params params = prepare(arguments, check(arguments), result.view(), lse.view());
  if (lse.view().numel() == 0) return;
  const Device device = arguments.tokens.q.device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    std::vector<double> memory(static_cast<size_t>(cpu_scratch_bytes(params, 1)) / sizeof(double));
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("block_sparse_attention", &block_sparse_attention, kDoc, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("offsets"), py::arg("columns"), py::arg("out"), py::kw_only(), py::arg("masks") = py::none(),
        py::arg("bits") = py::none(), py::arg("block_q") = 64, py::arg("block_k") = 64,
        py::arg("bias") = py::none(), py::arg("scale") = 1.0, py::arg("q_index") = py::none(),
        py::arg("kv_index") = py::none(), py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::block_sparse_attention
