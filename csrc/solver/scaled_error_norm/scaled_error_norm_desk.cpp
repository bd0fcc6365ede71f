// SPDX-License-Identifier: Apache-2.0
// The front desk of scaled_error_norm: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <cmath>

#include "core/layout.h"
#include "solver/scaled_error_norm/scaled_error_norm.h"

namespace fastdiff::scaled_error_norm {
namespace {

constexpr const char* kOp = "scaled_error_norm";
constexpr const char* kNames[kInputs] = {"lower", "higher", "previous"};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_input(const TensorView& x, const char* argument, const TensorView& first) {
  if (x.rank < 1) refuse(argument, " must have at least 1 dimension [B, *sample], got a 0-d tensor");
  if (x.device != first.device)
    refuse(argument, " must be on ", device_text(first.device), " like lower, got ", device_text(x.device));
  if (!is_real_float(x.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(x.dtype));
  if (x.rank != first.rank || !std::equal(x.sizes, x.sizes + x.rank, first.sizes))
    refuse(argument, " must have shape ", shape_text(first), " like lower, got ", shape_text(x));
}

void check_tolerance(double value, const char* argument) {
  if (!(value >= 0 && std::isfinite(value))) refuse(argument, " must be finite and at least 0, got ", value);
}

void check_result(const Arguments& a, DType dtype, const TensorView& result) {
  const TensorView& first = a.inputs[0];
  if (result.dtype != dtype)
    refuse("out must be ", name(dtype), dtype == DType::f64 ? " (an input is float64)" : "", ", got ",
           name(result.dtype));
  if (result.rank != 1 || result.sizes[0] != first.sizes[0])
    refuse("out must have shape [", first.sizes[0], "], got ", shape_text(result));
  if (result.device != first.device)
    refuse("out must be on ", device_text(first.device), " like lower, got ", device_text(result.device));
  if (!elements_are_distinct(result)) refuse("out must not have elements that share memory (expanded?)");
  for (int n = 0; n < kInputs; ++n)
    if (overlap(result, a.inputs[n]) != Overlap::none) refuse("out must not share memory with ", kNames[n]);
}

}  // namespace

DType check(const Arguments& a) {
  bool is_double = false;
  for (int n = 0; n < kInputs; ++n) {
    check_input(a.inputs[n], kNames[n], a.inputs[0]);
    is_double |= a.inputs[n].dtype == DType::f64;
  }
  check_tolerance(a.atol, "atol");
  check_tolerance(a.rtol, "rtol");
  return is_double ? DType::f64 : DType::f32;
}

Params prepare(const Arguments& a, DType dtype, const TensorView& result) {
  check_result(a, dtype, result);
  const TensorView& first = a.inputs[0];
  Params p;
  p.atol = a.atol;
  p.rtol = a.rtol;
  p.compute_double = dtype == DType::f64;
  p.result = result.data;
  p.result_stride = result.strides[0];

  // Row-major, whatever lies how in memory: the order of the sum
  Shape shape{first.rank, {}};
  std::copy_n(first.sizes, first.rank, shape.size);
  Space space(kOp, shape);
  space.order_by(space.row_major(false), true);
  Operands<kInputs> operands;
  for (int n = 0; n < kInputs; ++n) operands.add(p.source.x[n], a.inputs[n], space);
  p.source.samples = space.samples();
  p.source.numel = space.numel();
  p.source.dims = operands.merge(space, p.source.size);
  return p;
}

int64_t scratch_bytes(const Params& p) {
  return reduce::scratch_bytes(p.source, kSums);
}

int64_t cpu_scratch_bytes(const Params& p) {
  return reduce::cpu_scratch_bytes(p.source, kSums);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::scaled_error_norm
