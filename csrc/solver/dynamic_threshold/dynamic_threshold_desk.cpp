// SPDX-License-Identifier: Apache-2.0
// The front desk of dynamic_threshold: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/cache.h"
#include "core/layout.h"
#include "solver/dynamic_threshold/dynamic_threshold_math.h"

namespace fastdiff::dynamic_threshold {
namespace {

constexpr const char* kOp = "dynamic_threshold";
constexpr double kLeastThreshold = 1e-30;  // 1/s has to be a float

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_result(const TensorView& x, const Shape& shape, const TensorView& y) {
  if (y.dtype != x.dtype) refuse("out must be ", name(x.dtype), " like x, got ", name(y.dtype));
  if (y.rank != shape.rank || !std::equal(shape.size, shape.size + shape.rank, y.sizes))
    refuse("out must have shape ", shape_text(x), ", got ", shape_text(y));
  if (y.device != x.device)
    refuse("out must be on ", device_text(x.device), " like x, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  if (overlap(y, x) == Overlap::partial)
    refuse("out must be exactly x or not share memory with it, got a partial overlap");
}

}  // namespace

Shape check(const Arguments& a) {
  if (!is_real_float(a.x.dtype))
    refuse("x must be float32, float16, bfloat16 or float64, got ", name(a.x.dtype));
  // Negated, so that NaN is refused too
  if (!(a.ratio >= 0 && a.ratio <= 1)) refuse("ratio must be in 0..1, got ", a.ratio);
  if (!(a.min_value >= kLeastThreshold))
    refuse("min_value must be positive (at least 1e-30), got ", a.min_value);
  if (!(a.max_value >= a.min_value))
    refuse("max_value must be at least min_value = ", a.min_value, ", got ", a.max_value);
  Shape shape{a.x.rank, {}};
  std::copy_n(a.x.sizes, a.x.rank, shape.size);
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& result) {
  check_result(a.x, shape, result);

  Params p;
  p.ratio = a.ratio;
  p.max_value = a.max_value;
  p.min_value = a.min_value;
  p.compute_double = a.x.dtype == DType::f64;
  const int64_t bytes = 2 * a.x.numel() * size_of(a.x.dtype);
  p.stream = result.data != a.x.data && bytes > last_level_cache_bytes();

  // x alone, in its own order
  Space own(kOp, shape);
  const Space::Strides strides = own.strides(a.x);
  own.order_by(strides, true);
  p.samples = own.samples();
  p.numel = own.numel();
  p.search = own.walk(strides);

  // x and the result, in the order of the result
  Space space(kOp, shape);
  Operands<2> operands;
  operands.add(p.y, result, space);
  operands.add(p.x, a.x, space);
  space.order_by(operands.first(), true);
  p.dims = operands.merge(space, p.size);
  return p;
}

int64_t scratch_bytes(const Params& p) {
  if (p.numel <= kOneBlockNumel) return 0;
  return p.samples * static_cast<int64_t>(p.compute_double ? sizeof(Found<double>) : sizeof(Found<float>));
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  if (threads == 1 || p.numel < kSerialNumel) return 0;
  return threads * static_cast<int64_t>(p.compute_double ? sizeof(Tally<double>) : sizeof(Tally<float>));
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::dynamic_threshold
