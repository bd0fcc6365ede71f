// SPDX-License-Identifier: Apache-2.0
// The front desk of block_means: checks once for all callers and backends, then lays out the launch.
#include "attention/block_means/block_means.h"

namespace fastdiff::block_means {
namespace {

constexpr const char* kOp = "block_means";

}  // namespace

DType check(const Arguments& a, int64_t (&shape)[4]) {
  const TensorView& x = a.x;
  if (!is_real_float(x.dtype))
    refuse(kOp, "x must be float32, float16, bfloat16 or float64, got ", name(x.dtype));
  if (x.rank != 4) refuse(kOp, "x must have 4 dimensions [B, H, N, D], got ", shape_text(x));
  if (a.block < 1) refuse(kOp, "block must be at least 1, got ", a.block);
  std::copy_n(x.sizes, 4, shape);
  shape[2] = x.sizes[2] / a.block + (x.sizes[2] % a.block != 0);
  return x.dtype == DType::f64 ? DType::f64 : DType::f32;
}

Params prepare(const Arguments& a, const TensorView& y) {
  int64_t shape[4];
  const DType dtype = check(a, shape);
  attention::check_result(kOp, "out", y, {nullptr, dtype, 4, shape, shape, a.x.device});
  attention::check_results(kOp, {{"out", &y}}, {{"x", &a.x}});
  Params p;
  p.x = attention::heads_of(a.x);
  p.y = attention::heads_of(y);
  p.lists = shape[0] * shape[1];
  p.heads = shape[1];
  p.blocks = shape[2];
  p.block = a.block;
  p.dim = shape[3];
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::block_means
