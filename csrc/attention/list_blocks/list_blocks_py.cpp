// SPDX-License-Identifier: Apache-2.0
// list_blocks for any array library, through DLPack. No torch; the caller gives the memory.
#include "attention/list_blocks/list_blocks.h"
#include "core/python.h"

namespace fastdiff::list_blocks {
namespace {

constexpr const char* kDoc =
    R"(Write the lists of a plan into the arrays `out` = (offsets, columns, masks).

The same kernels as torch.ops.fastdiff.list_blocks.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.list_blocks. For CUDA arrays give as `stream` the cudaStream_t to launch on; the call does not wait
for it.)";

constexpr const char* kWhere = "fastdiff::list_blocks: ";

void list_blocks(const py::object& blocks, const py::sequence& out, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const DlpackTensor kinds(blocks, where("blocks"), Access::read, stream);
  if (py::len(out) != 3)
    throw py::value_error(where("out must be three arrays, offsets, columns and masks, got ") +
                          std::to_string(py::len(out)));
  const DlpackTensor offsets(out[0], where("offsets"), Access::write, stream),
      columns(out[1], where("columns"), Access::write, stream),
      masks(out[2], where("masks"), Access::write, stream);
  const Params params = prepare({kinds.view()}, {offsets.view(), columns.view(), masks.view()});
  if (params.lists == 0) return;
  const Device device = kinds.view().device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params, kAlone);
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("list_blocks", &list_blocks, kDoc, py::arg("blocks"), py::arg("out"), py::kw_only(),
        py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::list_blocks
