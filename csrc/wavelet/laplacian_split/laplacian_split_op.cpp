// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.laplacian_split, functional and out= variants.
#include "core/host.h"
#include "wavelet/laplacian_split/laplacian_split.h"

namespace fastdiff::laplacian_split {
namespace {

constexpr const char* kOp = "laplacian_split";

void run(const Arguments& arguments, const Bands& bands, const std::vector<Tensor>& results) {
  Params params = prepare(arguments, bands, views_of(kOp, "out", results));
  if (params.is_empty()) return;
  const Device device = arguments.x.device;
  const On on(device);
  const Scratch scratch(device, params.scratch_bytes);
  params.put_between(scratch.data());
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  isa::run<Cpu>(params, torch_team());
}

std::vector<Tensor> functional(Tensor x, int64_t levels) {
  const Arguments arguments{view_of(kOp, "x", x), levels};
  const Bands bands = check(arguments);
  std::vector<Tensor> results;
  for (int band = 0; band < bands.count; ++band) {
    // In the order in which x has its dimensions in memory.
    TensorView like = arguments.x;
    if (band > 0) like.sizes = bands.size[band];
    results.push_back(empty_output(like, bands.rank, bands.size[band], like.dtype));
  }
  run(arguments, bands, results);
  return results;
}

void out(Tensor x, int64_t levels, std::vector<Tensor> results) {
  const Arguments arguments{view_of(kOp, "x", x), levels};
  run(arguments, check(arguments), results);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("laplacian_split", TORCH_BOX(&functional));
  m.impl("laplacian_split.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("laplacian_split", TORCH_BOX(&functional));
  m.impl("laplacian_split.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::laplacian_split
