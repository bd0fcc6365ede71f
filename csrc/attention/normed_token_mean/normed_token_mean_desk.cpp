// SPDX-License-Identifier: Apache-2.0
// The front desk of normed_token_mean: checks once for all callers and backends, then lays out the launch.
#include <cmath>

#include "attention/normed_token_mean/normed_token_mean_math.h"
#include "core/layout.h"

namespace fastdiff::normed_token_mean {
namespace {

constexpr const char* kOp = "normed_token_mean";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_tensor(const TensorView& t, const char* argument, const TensorView& x) {
  if (t.device != x.device)
    refuse(argument, " must be on ", device_text(x.device), " like x, got ", device_text(t.device));
  if (!is_real_float(t.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
}

void check_modulation(const std::optional<TensorView>& t, const char* argument, const TensorView& x) {
  if (!t) return;
  check_tensor(*t, argument, x);
  if (t->rank != 2 || (t->sizes[0] != 1 && t->sizes[0] != x.sizes[0]) || t->sizes[1] != x.sizes[2])
    refuse(argument, " must have shape [", x.sizes[0], " or 1, ", x.sizes[2], "], got ", shape_text(*t));
}

void check_apart(const TensorView& y, const TensorView& t, const char* argument) {
  if (overlap(y, t) != Overlap::none) refuse("out must not share memory with ", argument);
}

Matrix matrix_of(const TensorView& t) {
  return {t.data, t.dtype, t.sizes[0] == 1 ? 0 : t.strides[0], t.strides[1]};
}

}  // namespace

void check(const Arguments& a) {
  check_tensor(a.x, "x", a.x);
  if (a.x.rank != 3) refuse("x must have 3 dimensions [B, N, D], got ", shape_text(a.x));
  if (a.x.sizes[2] > kMaxDim) refuse("x must have at most ", kMaxDim, " channels, got ", a.x.sizes[2]);
  check_modulation(a.scale, "scale", a.x);
  check_modulation(a.shift, "shift", a.x);
  if (!(a.eps >= 0 && std::isfinite(a.eps))) refuse("eps must be finite and at least 0, got ", a.eps);
}

Params prepare(const Arguments& a, const TensorView& y) {
  const TensorView& x = a.x;
  if (y.dtype != x.dtype) refuse("out must be ", name(x.dtype), " like x, got ", name(y.dtype));
  if (y.rank != 2 || y.sizes[0] != x.sizes[0] || y.sizes[1] != x.sizes[2])
    refuse("out must have shape [", x.sizes[0], ", ", x.sizes[2], "], got ", shape_text(y));
  if (y.device != x.device)
    refuse("out must be on ", device_text(x.device), " like x, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  check_apart(y, x, "x");
  if (a.scale) check_apart(y, *a.scale, "scale");
  if (a.shift) check_apart(y, *a.shift, "shift");
  Params p;
  p.samples = x.sizes[0];
  p.tokens = x.sizes[1];
  p.dim = static_cast<int>(x.sizes[2]);
  p.x = x.data;
  p.dtype = x.dtype;
  p.sample = x.strides[0];
  p.token = x.strides[1];
  p.column = x.strides[2];
  if (a.scale) p.scale = matrix_of(*a.scale);
  if (a.shift) p.shift = matrix_of(*a.shift);
  p.y = {y.data, y.dtype, y.strides[0], y.strides[1]};
  p.eps = a.eps;
  return p;
}

int64_t scratch_bytes(const Params& p) {
  return p.samples * chunks_of(p) * p.dim * (p.wide() ? 8 : 4);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::normed_token_mean
