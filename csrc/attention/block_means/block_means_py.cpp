// SPDX-License-Identifier: Apache-2.0
// block_means for any array library, through DLPack. No torch; the caller gives the memory.
#include "attention/block_means/block_means.h"
#include "core/python.h"

namespace fastdiff::block_means {
namespace {

constexpr const char* kDoc =
    R"(Write the means of blocks of tokens into `out`.

The same kernels as torch.ops.fastdiff.block_means.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.block_means. For CUDA arrays give as `stream` the cudaStream_t to launch on; the call does not wait
for it.)";

void block_means(const py::object& x, const py::object& out, int64_t block, uintptr_t stream) {
  const DlpackTensor tokens(x, "fastdiff::block_means: x", Access::read, stream),
      result(out, "fastdiff::block_means: out", Access::write, stream);
  const Params params = prepare({tokens.view(), block}, result.view());
  if (params.numel() == 0) return;
  const Device device = tokens.view().device;
  const py::gil_scoped_release release;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) return isa::run<Cpu>(params, kAlone);
#endif
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

const PyRoom room([](py::module_& m) {
  m.def("block_means", &block_means, kDoc, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("block"),
        py::arg("stream") = 0);
});

}  // namespace
}  // namespace fastdiff::block_means
