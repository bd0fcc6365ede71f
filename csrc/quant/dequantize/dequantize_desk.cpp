// SPDX-License-Identifier: Apache-2.0
// The front desk of dequantize: checks once for all callers and backends, then lays out the launch.
#include "quant/dequantize/dequantize.h"
#include "quant/operands.h"

namespace fastdiff::dequantize {
namespace {

constexpr const char* kOp = "dequantize";

}  // namespace

void check(const Arguments& a) {
  if (a.q.dtype != DType::i8) refuse(kOp, "q must be int8, got ", name(a.q.dtype));
  if (!is_real_float(a.dtype))
    refuse(kOp, "dtype must be float32, float16, bfloat16 or float64, got ", name(a.dtype));
  quant::check_affine(kOp, a.affine, a.q, quant::Scales::broadcast);
}

quant::Elements prepare(const Arguments& a, const TensorView& x) {
  TensorView expected = a.q;
  expected.dtype = a.dtype;
  quant::check_result(kOp, "out", x, expected);
  quant::check_apart(kOp, "out", x, "q", a.q);
  quant::check_apart_from_affine(kOp, x, a.affine);
  quant::Elements e = quant::elements_of(kOp, a.q, a.affine, x);
  e.wide = a.dtype == DType::f64;
  return e;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const quant::Elements&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::dequantize
