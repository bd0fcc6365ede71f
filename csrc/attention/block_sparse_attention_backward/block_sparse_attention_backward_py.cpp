// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward for any array library, through DLPack. No torch; the caller gives the
// memory.
#include <vector>

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward.h"
#include "attention/plan_py.h"

namespace fastdiff::block_sparse_attention_backward {
namespace {

constexpr const char* kDoc =
    R"(Write the gradients of block_sparse_attention into the arrays `out` = (dq, dk, dv) or (dq, dk, dv, dbias).

The same kernels as torch.ops.fastdiff.block_sparse_attention_backward.out, for arrays of any library that speaks
DLPack (NumPy, CuPy, ...). `result` and `lse` are what block_sparse_attention gave; dout and dlse their gradients. For
CUDA arrays give `scratch`, a uint8 array of block_sparse_attention_backward_scratch(dout) bytes, and as `stream` the
cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that block_sparse_attention_backward needs for CUDA gradients like this; "
    "`entries`: of a "
    "table whose gradient is wanted.";

constexpr const char* kWhere = "fastdiff::block_sparse_attention_backward: ";

std::string where(const char* argument) {
  return std::string(kWhere) + argument;
}

void block_sparse_attention_backward(const py::object& dout, const py::object& q, const py::object& k,
                                     const py::object& v, const py::object& result, const py::object& lse,
                                     const py::object& offsets, const py::object& columns,
                                     const py::sequence& out, const py::object& dlse, const py::object& masks,
                                     const py::object& bits, int64_t block_q, int64_t block_k,
                                     const py::object& bias, const py::object& q_code,
                                     const py::object& k_code, double scale, const py::object& q_index,
                                     const py::object& kv_index, const py::object& scratch,
                                     uintptr_t stream) {
  const auto read = [stream](const py::object& array, const char* argument) {
    return DlpackTensor(array, where(argument), Access::read, stream);
  };
  const attention::TokenArrays tokens(kWhere, q, k, v, q_index, kv_index, stream);
  const DlpackTensor gradient = read(dout, "dout"), forward = read(result, "result"), sums = read(lse, "lse");
  const OptionalArray of_lse(dlse, where("dlse"), Access::read, stream);
  const attention::BiasArrays biases(kWhere, bias, q_code, k_code, stream);
  const attention::PlanArrays plan(kWhere, offsets, columns, masks, bits, stream);
  const size_t count = py::len(out);
  if (count != 3 && count != 4)
    throw py::value_error(where("out must be three or four arrays, dq, dk, dv and dbias, got ") +
                          std::to_string(count));
  const DlpackTensor dq(out[0], where("dq"), Access::write, stream),
      dk(out[1], where("dk"), Access::write, stream), dv(out[2], where("dv"), Access::write, stream);
  const py::object none = py::none();
  const py::object fourth = count == 4 ? py::object(out[3]) : none;
  const OptionalArray dbias(fourth, where("dbias"), Access::write, stream);
  const bool wants_bias = dbias.view() && dbias.view()->numel() > 0;
  const Arguments arguments{gradient.view(),    tokens.tokens(), forward.view(),
                            sums.view(),        of_lse.view(),   plan.arguments(block_q, block_k),
                            biases.arguments(), scale,           wants_bias};
  const int64_t nothing[] = {0};
  const TensorView empty{nullptr, arguments.lse.dtype, 1, nothing, nothing, arguments.tokens.q.device};
  const Params params =
      prepare(arguments, check(arguments), {dq.view(), dk.view(), dv.view(), dbias.view().value_or(empty)});
  if (params.extent.samples * params.extent.kv_heads == 0) return;
  const Device device = arguments.tokens.q.device;
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

int64_t needed(const py::object& dout, int64_t entries) {
  const DlpackTensor queries(dout, where("dout"));
  const TensorView& view = queries.view();
  Params p;
  p.q.dtype = view.dtype;
  p.extent.samples = view.rank > 0 ? view.sizes[0] : 0;
  p.extent.heads = view.rank > 1 ? view.sizes[1] : 0;
  p.extent.queries = view.rank > 2 ? view.sizes[2] : 0;
  p.bias.entries = entries;
  if (entries > 0) p.dtable.data = &p;  // wanted
  return scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("block_sparse_attention_backward", &block_sparse_attention_backward, kDoc, py::arg("dout"),
        py::arg("q"), py::arg("k"), py::arg("v"), py::arg("result"), py::arg("lse"), py::arg("offsets"),
        py::arg("columns"), py::arg("out"), py::kw_only(), py::arg("dlse") = py::none(),
        py::arg("masks") = py::none(), py::arg("bits") = py::none(), py::arg("block_q") = 64,
        py::arg("block_k") = 64, py::arg("bias") = py::none(), py::arg("q_code") = py::none(),
        py::arg("k_code") = py::none(), py::arg("scale") = 1.0, py::arg("q_index") = py::none(),
        py::arg("kv_index") = py::none(), py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("block_sparse_attention_backward_scratch", &needed, kScratchDoc, py::arg("dout"),
        py::arg("entries") = 0);
});

}  // namespace
}  // namespace fastdiff::block_sparse_attention_backward
