// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention for any array library, through DLPack. No torch; the caller gives the memory.
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "attention/block_sparse_attention/block_sparse_attention_math.h"
#include "attention/plan_py.h"

namespace fastdiff::block_sparse_attention {
namespace {

constexpr const char* kDoc =
    R"(Write softmax attention over the blocks of a plan, and its log-sum-exp, into the arrays `out` = (out, lse).

The same kernels as torch.ops.fastdiff.block_sparse_attention.out, for arrays of any library that speaks DLPack
(NumPy, CuPy, ...). See fastdiff.block_sparse_attention, and fastdiff.AttentionPlan for offsets, columns, masks and
bits. For CUDA arrays give as `stream` the cudaStream_t to launch on, and as `scratch` as many uint8 as
block_sparse_attention_scratch says; the call does not wait for the stream.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that block_sparse_attention needs for CUDA arrays like these; `sets`: how many "
    "sets of "
    "keys.";

constexpr const char* kWhere = "fastdiff::block_sparse_attention: ";

void block_sparse_attention(const py::object& q, const py::object& k, const py::object& v,
                            const py::object& offsets, const py::object& columns, const py::sequence& out,
                            const py::object& masks, const py::object& bits, int64_t block_q, int64_t block_k,
                            std::vector<int64_t> sets, const py::object& bias, const py::object& q_code,
                            const py::object& k_code, const py::object& weights, const py::object& q_end,
                            double mix, double scale, const py::object& q_index, const py::object& kv_index,
                            const py::object& scratch, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const attention::TokenArrays tokens(kWhere, q, k, v, q_index, kv_index, stream);
  const attention::PlanArrays plan(kWhere, offsets, columns, masks, bits, stream);
  const attention::BiasArrays biases(kWhere, bias, q_code, k_code, stream);
  const OptionalArray weights_(weights, where("weights"), Access::read, stream),
      end(q_end, where("q_end"), Access::read, stream);
  if (py::len(out) != 2)
    throw py::value_error(where("out must be two arrays, out and lse, got ") + std::to_string(py::len(out)));
  const DlpackTensor result(out[0], where("out"), Access::write, stream),
      lse(out[1], where("lse"), Access::write, stream);
  const Arguments arguments{tokens.tokens(),
                            plan.arguments(block_q, block_k, std::move(sets)),
                            biases.arguments(),
                            weights_.view(),
                            end.view(),
                            mix,
                            scale};
  const Params params = prepare(arguments, check(arguments), result.view(), lse.view());
  if (rows_of_all(params) == 0) return;
  const Device device = arguments.tokens.q.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(cpu_scratch_bytes(params, 1)) / sizeof(double));
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, cuda_scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& q, const py::object& offsets, const py::object& columns,
               const py::object& q_index, int64_t sets) {
  const std::string where(kWhere);
  const DlpackTensor queries(q, where + "q"), rows(offsets, where + "offsets"),
      entries(columns, where + "columns");
  const OptionalArray index(q_index, where + "q_index", Access::read, 0);
  const TensorView &t = queries.view(), &o = rows.view();
  if (t.rank != 4 || o.rank != 3 || entries.view().rank != 1 || (index.view() && index.view()->rank != 2))
    return 0;  // the call refuses them
  Params p;
  p.q.dtype = t.dtype;
  p.extent.samples = t.sizes[0];
  p.extent.heads = t.sizes[1];
  p.extent.queries = index.view() ? index.view()->sizes[1] : t.sizes[2];
  p.extent.head_dim = static_cast<int>(t.sizes[3]);
  p.plan.rows = static_cast<int>(o.sizes[2]) - 1;
  p.plan.sample_stride = o.sizes[0] - 1;
  p.plan.head_stride = o.sizes[1] - 1;
  p.plan.entries = entries.view().sizes[0];
  p.plan.sets = static_cast<int>(sets);
  p.splits = splits_of(p, t.device);
  return cuda_scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("block_sparse_attention", &block_sparse_attention, kDoc, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("offsets"), py::arg("columns"), py::arg("out"), py::kw_only(), py::arg("masks") = py::none(),
        py::arg("bits") = py::none(), py::arg("block_q") = 64, py::arg("block_k") = 64,
        py::arg("sets") = std::vector<int64_t>(), py::arg("bias") = py::none(),
        py::arg("q_code") = py::none(), py::arg("k_code") = py::none(), py::arg("weights") = py::none(),
        py::arg("q_end") = py::none(), py::arg("mix") = 0.0, py::arg("scale") = 1.0,
        py::arg("q_index") = py::none(), py::arg("kv_index") = py::none(), py::arg("scratch") = py::none(),
        py::arg("stream") = 0);
  m.def("block_sparse_attention_scratch", &needed, kScratchDoc, py::arg("q"), py::arg("offsets"),
        py::arg("columns"), py::kw_only(), py::arg("q_index") = py::none(), py::arg("sets") = 1);
});

}  // namespace
}  // namespace fastdiff::block_sparse_attention
