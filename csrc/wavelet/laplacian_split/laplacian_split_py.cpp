// SPDX-License-Identifier: Apache-2.0
// laplacian_split for any array library, through DLPack. No torch; the caller gives the memory.
#include <list>
#include <vector>

#include "core/python.h"
#include "wavelet/laplacian_split/laplacian_split.h"

namespace fastdiff::laplacian_split {
namespace {

constexpr const char* kDoc =
    R"(Write the bands of the Laplacian pyramid of x into the arrays of `out`, finest first.

The same kernels as torch.ops.fastdiff.laplacian_split.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...); there are as many levels as arrays. See fastdiff.laplacian_split. For CUDA arrays of more than two
levels give `scratch`, a uint8 array of laplacian_split_scratch(x, levels) bytes, and as `stream` the cudaStream_t
to launch on; the call does not wait for it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that laplacian_split needs for a CUDA array like x and so many levels.";

constexpr const char* kWhere = "fastdiff::laplacian_split: ";

void laplacian_split(const py::object& x, const py::list& out, const py::object& scratch, uintptr_t stream) {
  const DlpackTensor whole(x, std::string(kWhere) + "x", Access::read, stream);
  std::list<DlpackTensor> held;
  std::vector<TensorView> results;
  for (const py::handle array : out) {
    const std::string where = std::string(kWhere) + "out[" + std::to_string(results.size()) + "]";
    results.push_back(held.emplace_back(array, where, Access::write, stream).view());
  }
  const Arguments arguments{whole.view(), static_cast<int64_t>(results.size())};
  Params params = prepare(arguments, check(arguments), results);
  if (params.is_empty()) return;
  const Device device = arguments.x.device;
#if !FASTDIFF_SIMT
  if (device.type != DeviceType::cuda) {
    const py::gil_scoped_release release;
    std::vector<double> memory(static_cast<size_t>(params.scratch_bytes) / sizeof(double) + 1);
    params.put_between(memory.data());
    return isa::run<Cpu>(params, kAlone);
  }
#endif
  const Scratch memory(scratch, kWhere, params.scratch_bytes, device, stream);
  const py::gil_scoped_release release;
  params.put_between(memory.data());
  launch_cuda(params, device.index, reinterpret_cast<void*>(stream));
}

int64_t needed(const py::object& x, int64_t levels) {
  const DlpackTensor whole(x, std::string(kWhere) + "x");
  const Arguments arguments{whole.view(), levels};
  const Bands bands = check(arguments);
  std::vector<TensorView> results(static_cast<size_t>(levels), whole.view());  // only their number counts
  for (int band = 1; band < bands.count; ++band) results[static_cast<size_t>(band)].sizes = bands.size[band];
  return pyramid::lay_out("laplacian_split", whole.view(), results).scratch_bytes;
}

const PyRoom room([](py::module_& m) {
  m.def("laplacian_split", &laplacian_split, kDoc, py::arg("x"), py::arg("out"), py::kw_only(),
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("laplacian_split_scratch", &needed, kScratchDoc, py::arg("x"), py::arg("levels"));
});

}  // namespace
}  // namespace fastdiff::laplacian_split
