// SPDX-License-Identifier: Apache-2.0
// The front desk of quantize_per_token: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "quant/operands.h"
#include "quant/quantize_per_token/quantize_per_token.h"

namespace fastdiff::quantize_per_token {
namespace {

constexpr const char* kOp = "quantize_per_token";

}  // namespace

void check(const Arguments& a) {
  quant::check_rows(kOp, a.x, a.norm);
}

Params prepare(const Arguments& a, const TensorView& q, const TensorView& scale) {
  TensorView expected{nullptr, DType::i8, a.x.rank, a.x.sizes, a.x.strides, a.x.device};
  quant::check_result(kOp, "q", q, expected);
  int64_t sizes[kMaxRank];
  std::copy_n(a.x.sizes, a.x.rank, sizes);
  sizes[a.x.rank - 1] = 1;
  expected.dtype = DType::f32;
  expected.sizes = sizes;
  quant::check_result(kOp, "scale", scale, expected);
  quant::check_apart_from_rows(kOp, "q", q, a.x, a.norm);
  quant::check_apart_from_rows(kOp, "scale", scale, a.x, a.norm);
  quant::check_apart(kOp, "q", q, "scale", scale);
  Params p;
  p.rows = quant::rows_of(kOp, a.x, a.norm, {{&p.q, &q}, {&p.scale, &scale}});
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::quantize_per_token
