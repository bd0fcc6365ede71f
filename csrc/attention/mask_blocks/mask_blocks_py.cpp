// SPDX-License-Identifier: Apache-2.0
// mask_blocks for any array library, through DLPack. No torch; the caller gives the memory.
#include "attention/mask_blocks/mask_blocks.h"
#include "core/python.h"

namespace fastdiff::mask_blocks {
namespace {

constexpr const char* kDoc =
    R"(Write of each block of a mask whether it is seen, and its bits, into the arrays `out` = (kinds, bits).

The same kernels as torch.ops.fastdiff.mask_blocks.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.mask_blocks. For CUDA arrays give as `stream` the cudaStream_t to launch on; the call does not wait
for it.)";

constexpr const char* kWhere = "fastdiff::mask_blocks: ";

void mask_blocks(const py::object& mask, const py::sequence& out, int64_t block_q, int64_t block_k,
                 uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const DlpackTensor of_mask(mask, where("mask"), Access::read, stream);
  if (py::len(out) != 2)
    throw py::value_error(where("out must be two arrays, kinds and bits, got ") +
                          std::to_string(py::len(out)));
  const DlpackTensor kinds(out[0], where("kinds"), Access::write, stream),
      bits(out[1], where("bits"), Access::write, stream);
  const Params params = prepare({of_mask.view(), block_q, block_k}, kinds.view(), bits.view());
  if (params.numel() == 0) return;
  const Device device = of_mask.view().device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params, kAlone);
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("mask_blocks", &mask_blocks, kDoc, py::arg("mask"), py::arg("out"), py::kw_only(),
        py::arg("block_q") = 64, py::arg("block_k") = 64, py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::mask_blocks
