// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.lp_range_search, functional and out= variants.
#include <tuple>

#include "core/host.h"
#include "quant/lp_range_search/lp_range_search.h"

namespace fastdiff::lp_range_search {
namespace {

constexpr const char* kOp = "lp_range_search";

void run(const Arguments& arguments, const Results& results) {
  const Params params = prepare(arguments, results);
  if (params.rows == 0) return;
  const Device device = arguments.x.device;
  const On on(device);
  const Scratch scratch(device, scratch_bytes(params));
  if (device.type == DeviceType::cuda) return launch_cuda(params, scratch.data(), device.index, on.stream());
  isa::run<Cpu>(params, scratch.data(), torch_team());
}

Results results_of(const Tensor& scale, const Tensor& zero_point) {
  return {view_of(kOp, "scale", scale), view_of(kOp, "zero_point", zero_point)};
}

std::tuple<Tensor, Tensor> functional(Tensor x, double p, int64_t candidates, int64_t bits, bool by_rows) {
  const Arguments arguments{view_of(kOp, "x", x), p, candidates, bits, by_rows};
  check(arguments);
  const int rank = by_rows ? 1 : 0;
  const TensorView& view = arguments.x;
  Tensor scale = empty_contiguous({nullptr, DType::f32, rank, view.sizes, nullptr, view.device});
  Tensor zero_point = empty_contiguous({nullptr, DType::i32, rank, view.sizes, nullptr, view.device});
  run(arguments, results_of(scale, zero_point));
  return {scale, zero_point};
}

void out(Tensor x, double p, int64_t candidates, int64_t bits, bool by_rows, Tensor scale,
         Tensor zero_point) {
  const Arguments arguments{view_of(kOp, "x", x), p, candidates, bits, by_rows};
  check(arguments);
  run(arguments, results_of(scale, zero_point));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("lp_range_search", TORCH_BOX(&functional));
  m.impl("lp_range_search.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("lp_range_search", TORCH_BOX(&functional));
  m.impl("lp_range_search.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::lp_range_search
