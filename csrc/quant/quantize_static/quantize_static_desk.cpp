// SPDX-License-Identifier: Apache-2.0
// The front desk of quantize_static: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "quant/operands.h"
#include "quant/quantize_static/quantize_static.h"

namespace fastdiff::quantize_static {
namespace {

constexpr const char* kOp = "quantize_static";

bool is_normed(const quant::NormArguments& n) {
  return n.eps || n.weight || n.bias || n.scale_by || n.shift;
}

}  // namespace

void check(const Arguments& a) {
  if (is_normed(a.norm)) {
    quant::check_rows(kOp, a.x, a.norm);
  } else {
    quant::check_float(kOp, "x", a.x, a.x.device);
  }
  quant::check_affine(kOp, a.affine, a.x, quant::Scales::one);
  quant::check_range(kOp, a.low, a.high, -128, 127);
}

Params prepare(const Arguments& a, const TensorView& q) {
  const TensorView& x = a.x;
  quant::check_result(kOp, "out", q, {nullptr, DType::i8, x.rank, x.sizes, x.strides, x.device});
  quant::check_apart_from_rows(kOp, "out", q, x, a.norm);
  quant::check_apart_from_affine(kOp, q, a.affine);
  Params p;
  p.by_rows = is_normed(a.norm);
  p.elements = quant::elements_of(kOp, x, a.affine, q);
  p.elements.affine.low = static_cast<float>(a.low);
  p.elements.affine.high = static_cast<float>(a.high);
  if (!p.by_rows) return p;
  if (!a.affine.step) {
    p.rows = quant::rows_of(kOp, x, a.norm, {{&p.q, &q}});
    return p;
  }
  // The step of a sample is that of all its rows.
  int64_t sizes[kMaxRank], strides[kMaxRank] = {};
  std::fill_n(sizes, x.rank, int64_t{1});
  if (a.affine.step->numel() > 1) {
    sizes[0] = x.sizes[0];
    strides[0] = a.affine.step->strides[0];
  }
  const TensorView step{a.affine.step->data, DType::i64, x.rank, sizes, strides, x.device};
  p.rows = quant::rows_of(kOp, x, a.norm, {{&p.q, &q}, {&p.step, &step}});
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::quantize_static
