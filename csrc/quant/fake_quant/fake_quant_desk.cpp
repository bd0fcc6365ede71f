// SPDX-License-Identifier: Apache-2.0
// The front desk of fake_quant: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "quant/fake_quant/fake_quant.h"
#include "quant/operands.h"

namespace fastdiff::fake_quant {
namespace {

constexpr const char* kOp = "fake_quant";
constexpr int64_t kMost = int64_t{1} << 22;  // float32 has halves below

void check_same_or_apart(const TensorView& y, const TensorView& t, const char* argument) {
  if (overlap(y, t) == Overlap::partial)
    refuse(kOp, "out must be exactly ", argument, " or not share memory with ", argument);
}

}  // namespace

void check(const Arguments& a) {
  quant::check_float(kOp, "x", a.x, a.x.device);
  quant::check_affine(kOp, a.affine, a.x, quant::Scales::broadcast);
  quant::check_range(kOp, a.low, a.high, -kMost, kMost);
  if (!a.gradient) return;
  const TensorView& g = *a.gradient;
  if (g.dtype != a.x.dtype || g.device != a.x.device || g.rank != a.x.rank ||
      !std::equal(g.sizes, g.sizes + g.rank, a.x.sizes))
    refuse(kOp, "gradient must be ", name(a.x.dtype), " ", shape_text(a.x), " on ", device_text(a.x.device),
           " like x, got ", name(g.dtype), " ", shape_text(g), " on ", device_text(g.device));
}

quant::Elements prepare(const Arguments& a, const TensorView& y) {
  quant::check_result(kOp, "out", y, a.x);
  check_same_or_apart(y, a.x, "x");
  if (a.gradient) check_same_or_apart(y, *a.gradient, "gradient");
  quant::check_apart_from_affine(kOp, y, a.affine);
  quant::Elements e = quant::elements_of(kOp, a.x, a.affine, y, a.gradient);
  e.affine.low = static_cast<float>(a.low);
  e.affine.high = static_cast<float>(a.high);
  e.wide = a.x.dtype == DType::f64;
  return e;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const quant::Elements&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::fake_quant
