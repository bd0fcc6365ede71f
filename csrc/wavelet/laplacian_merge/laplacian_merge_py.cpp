// SPDX-License-Identifier: Apache-2.0
// laplacian_merge for any array library, through DLPack. No torch; the caller gives the memory.
#include <list>
#include <vector>

#include "core/python.h"
#include "wavelet/laplacian_merge/laplacian_merge.h"

namespace fastdiff::laplacian_merge {
namespace {

constexpr const char* kDoc =
    R"(Write the image whose Laplacian pyramid has these bands, finest first, into `out`.

The same kernels as torch.ops.fastdiff.laplacian_merge.out, for arrays of any library that speaks DLPack (NumPy,
CuPy, ...). See fastdiff.laplacian_merge. For CUDA arrays of more than two levels give `scratch`, a uint8 array of
laplacian_merge_scratch(bands) bytes, and as `stream` the cudaStream_t to launch on; the call does not wait for
it.)";

constexpr const char* kScratchDoc =
    "Bytes of device memory that laplacian_merge needs for CUDA arrays like these.";

constexpr const char* kWhere = "fastdiff::laplacian_merge: ";

// The arrays, held.
class Bands {
 public:
  Bands(const py::list& bands, uintptr_t stream) {
    for (const py::handle array : bands) {
      const std::string where = std::string(kWhere) + "bands[" + std::to_string(views_.size()) + "]";
      views_.push_back(held_.emplace_back(array, where, Access::read, stream).view());
    }
  }
  const std::vector<TensorView>& views() const { return views_; }

 private:
  std::list<DlpackTensor> held_;
  std::vector<TensorView> views_;
};

void laplacian_merge(const py::list& bands, const py::object& out, const py::object& scratch,
                     uintptr_t stream) {
  const Bands held(bands, stream);
  const DlpackTensor result(out, std::string(kWhere) + "out", Access::write, stream);
  const Arguments arguments{held.views()};
  check(arguments);
  Params params = prepare(arguments, result.view());
  if (params.is_empty()) return;
  const Device device = arguments.bands[0].device;
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

int64_t needed(const py::list& bands) {
  const Bands held(bands, 0);
  const Arguments arguments{held.views()};
  check(arguments);
  return pyramid::lay_out("laplacian_merge", held.views()[0], held.views()).scratch_bytes;
}

const PyRoom room([](py::module_& m) {
  m.def("laplacian_merge", &laplacian_merge, kDoc, py::arg("bands"), py::arg("out"), py::kw_only(),
        py::arg("scratch") = py::none(), py::arg("stream") = 0);
  m.def("laplacian_merge_scratch", &needed, kScratchDoc, py::arg("bands"));
});

}  // namespace
}  // namespace fastdiff::laplacian_merge
