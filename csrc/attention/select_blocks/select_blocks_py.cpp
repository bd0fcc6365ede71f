// SPDX-License-Identifier: Apache-2.0
// select_blocks for any array library, through DLPack. No torch; the caller gives the memory.
#include <vector>

#include "attention/select_blocks/select_blocks.h"
#include "core/python.h"

namespace fastdiff::select_blocks {
namespace {

constexpr const char* kDoc =
    R"(Write which scores of each row are chosen, by their number or by their share of its softmax, into `out`.

The same kernels as torch.ops.fastdiff.select_blocks.out, for arrays of any library that speaks DLPack (NumPy, CuPy,
...). See fastdiff.select_blocks. For CUDA arrays give `scratch`, a uint8 array of select_blocks_scratch(scores)
bytes, and as `stream` the cudaStream_t to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that select_blocks needs for a CUDA array like scores; often none.";

constexpr const char* kWhere = "fastdiff::select_blocks: ";

void select_blocks(const py::object& scores, const py::object& out, const py::object& count,
                   const py::object& mass, const py::object& scratch, uintptr_t stream) {
  const auto where = [](const char* argument) { return std::string(kWhere) + argument; };
  const DlpackTensor of_scores(scores, where("scores"), Access::read, stream),
      result(out, where("out"), Access::write, stream);
  const OptionalArray of_count(count, where("count"), Access::read, stream),
      of_mass(mass, where("mass"), Access::read, stream);
  const Arguments arguments{of_scores.view(), of_count.view(), of_mass.view()};
  check(arguments);
  const Params params = prepare(arguments, result.view());
  if (params.numel() == 0) return;
  const Device device = arguments.scores.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<uint64_t> memory(static_cast<size_t>(cpu_scratch_bytes(params, 1)) / sizeof(uint64_t) + 1);
    return isa::run<Cpu>(params, memory.data(), kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, cuda_scratch_bytes(params), device, stream);
  const py::gil_scoped_release release;
  launch_cuda(params, memory.data(), device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& scores) {
  const DlpackTensor of_scores(scores, std::string(kWhere) + "scores");
  const TensorView& view = of_scores.view();
  if (view.rank != 4) throw py::value_error(std::string(kWhere) + "scores must have 4 dimensions");
  Params p;
  p.scores.dtype = view.dtype;
  p.lists = view.sizes[0] * view.sizes[1];
  p.rows = view.sizes[2];
  p.columns = view.sizes[3];
  return cuda_scratch_bytes(p);
}

const PyRoom room([](py::module_& m) {
  m.def("select_blocks", &select_blocks, kDoc, py::arg("scores"), py::arg("out"), py::kw_only(),
        py::arg("count") = py::none(), py::arg("mass") = py::none(), py::arg("scratch") = py::none(),
        py::arg("stream") = 0);
  m.def("select_blocks_scratch", &needed, kScratchDoc, py::arg("scores"));
});

}  // namespace
}  // namespace fastdiff::select_blocks
