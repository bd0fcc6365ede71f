// SPDX-License-Identifier: Apache-2.0
// The front desk of guidance_stats: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <cmath>

#include "core/layout.h"
#include "guidance/guidance_stats/guidance_stats.h"

namespace fastdiff::guidance_stats {
namespace {

constexpr const char* kOp = "guidance_stats";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

// body(tensor, argument) for u, c and the extras
template <class Body>
void each_input(const Arguments& a, const Body& body) {
  body(a.uncond, Argument("uncond"));
  body(a.cond, Argument("cond"));
  for (size_t j = 0; j < a.extras.size(); ++j) body(a.extras[j], Argument("extras", j));
}

void check_input(const TensorView& x, const Argument& argument, const TensorView& first) {
  if (x.rank < 1) refuse(argument, " must have at least 1 dimension [B, *sample], got a 0-d tensor");
  if (x.device != first.device)
    refuse(argument, " must be on ", device_text(first.device), " like uncond, got ", device_text(x.device));
  if (!is_real_float(x.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(x.dtype));
  if (x.rank != first.rank || !std::equal(x.sizes, x.sizes + x.rank, first.sizes))
    refuse(argument, " must have shape ", shape_text(first), " like uncond, got ", shape_text(x));
}

void check_result(const Arguments& a, const TensorView& result) {
  const int sums = sums_of(2 + static_cast<int>(a.extras.size()));
  if (result.dtype != DType::f64) refuse("out must be float64, got ", name(result.dtype));
  if (result.rank != 2 || result.sizes[0] != a.uncond.sizes[0] || result.sizes[1] != sums)
    refuse("out must have shape [", a.uncond.sizes[0], ", ", sums, "], got ", shape_text(result));
  if (result.device != a.uncond.device)
    refuse("out must be on ", device_text(a.uncond.device), " like uncond, got ", device_text(result.device));
  if (!elements_are_distinct(result)) refuse("out must not have elements that share memory (expanded?)");
  each_input(a, [&](const TensorView& x, const Argument& argument) {
    if (overlap(result, x) != Overlap::none) refuse("out must not share memory with ", argument.text());
  });
}

}  // namespace

void check(const Arguments& a) {
  if (a.extras.size() > kMaxExtras)
    refuse("extras must be at most ", kMaxExtras, " tensors, got ", a.extras.size());
  each_input(a, [&](const TensorView& x, const Argument& argument) { check_input(x, argument, a.uncond); });
  if (a.mix.size() != kMix * a.extras.size())
    refuse("mix must be ", kMix, " numbers per extra, ", kMix * a.extras.size(), " in all, got ",
           a.mix.size());
  for (size_t m = 0; m < a.mix.size(); ++m)
    if (!std::isfinite(a.mix[m])) refuse(Argument("mix", m), " must be finite, got ", a.mix[m]);
}

Params prepare(const Arguments& a, const TensorView& result) {
  check_result(a, result);
  Params p;
  p.features = 2 + static_cast<int>(a.extras.size());
  for (size_t m = 0; m < a.mix.size(); ++m) p.mix[m / kMix][m % kMix] = a.mix[m];
  p.result = static_cast<double*>(result.data);
  p.sample_stride = result.strides[0];
  p.sum_stride = result.strides[1];

  // Row-major, whatever lies how in memory: the order of the sum
  Shape shape{a.uncond.rank, {}};
  std::copy_n(a.uncond.sizes, a.uncond.rank, shape.size);
  Space space(kOp, shape);
  space.order_by(space.row_major(false), true);
  Operands<kMaxFeatures> operands;
  int n = 0;
  each_input(a, [&](const TensorView& x, const Argument&) {
    operands.add(p.source.x[n++], x, space);
    p.compute_double |= x.dtype == DType::f64;
  });
  p.source.samples = space.samples();
  p.source.numel = space.numel();
  p.source.dims = operands.merge(space, p.source.size);
  return p;
}

int64_t scratch_bytes(const Params& p) {
  return reduce::scratch_bytes(p.source, sums_of(p.features));
}

int64_t cpu_scratch_bytes(const Params& p) {
  return reduce::cpu_scratch_bytes(p.source, sums_of(p.features));
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::guidance_stats
