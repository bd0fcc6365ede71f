// SPDX-License-Identifier: Apache-2.0
// The front desk of sparse_fill: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "core/space.h"
#include "quant/sparse_fill/sparse_fill_math.h"

namespace fastdiff::sparse_fill {
namespace {

constexpr const char* kOp = "sparse_fill";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_tensor(const char* argument, const TensorView& t, const TensorView& w) {
  if (t.device != w.device)
    refuse(argument, " must be on ", device_text(w.device), " like w, got ", device_text(t.device));
  if (!is_real_float(t.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
}

}  // namespace

void check(const Arguments& a) {
  check_tensor("w", a.w, a.w);
  check_tensor("threshold", a.threshold, a.w);
  check_tensor("values", a.values, a.w);
  if (a.threshold.rank != 0) refuse("threshold must have shape [], got ", shape_text(a.threshold));
  if (a.values.rank != 1) refuse("values must have 1 dimension [M], got ", shape_text(a.values));
}

Params prepare(const Arguments& a, const TensorView& y) {
  const TensorView& w = a.w;
  if (y.dtype != w.dtype) refuse("out must be ", name(w.dtype), " like w, got ", name(y.dtype));
  if (y.device != w.device)
    refuse("out must be on ", device_text(w.device), " like w, got ", device_text(y.device));
  if (y.rank != w.rank || !std::equal(w.sizes, w.sizes + w.rank, y.sizes))
    refuse("out must have shape ", shape_text(w), " like w, got ", shape_text(y));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  // An element of w is read before that of y is written.
  if (overlap(y, w) == Overlap::partial) refuse("out must be exactly w or not share memory with w");
  if (overlap(y, a.threshold) != Overlap::none) refuse("out must not share memory with threshold");
  if (overlap(y, a.values) != Overlap::none) refuse("out must not share memory with values");

  Params p;
  Shape shape{w.rank, {}};
  std::copy_n(w.sizes, w.rank, shape.size);
  // Row-major, whatever lies how in memory: the order of the values
  Space space(kOp, shape);
  space.order_by(space.row_major(false), false);
  Operands<2> operands;
  operands.add(p.w, w, space);
  operands.add(p.y, y, space);
  p.numel = space.numel();
  p.dims = operands.merge(space, p.size);
  p.threshold = a.threshold.data;
  p.threshold_dtype = a.threshold.dtype;
  p.values = a.values.data;
  p.values_dtype = a.values.dtype;
  p.count = a.values.sizes[0];
  p.values_stride = a.values.strides[0];
  p.wide = w.dtype == DType::f64;
  return p;
}

void check_count(const Params& p, int64_t replaced) {
  if (replaced != p.count)
    refuse("values must have as many elements as w has below the threshold, ", replaced, ", got ", p.count,
           " (is w bit for bit the tensor that they were taken of?)");
}

int64_t scratch_numel(const Params& p) {
  return chunks_of(p) + 1;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int64_t*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::sparse_fill
