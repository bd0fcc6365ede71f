// SPDX-License-Identifier: Apache-2.0
// The front desk of channel_affine: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <cmath>

#include "core/cache.h"
#include "core/layout.h"
#include "guidance/channel_affine/channel_affine_math.h"

namespace fastdiff::channel_affine {
namespace {

constexpr const char* kOp = "channel_affine";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

// ---- checks ---------------------------------------------------------------------------------------

void check_tensor(const TensorView& t, const char* argument, const TensorView& x) {
  if (t.device != x.device)
    refuse(argument, " must be on ", device_text(x.device), " like x, got ", device_text(t.device));
  if (!is_real_float(t.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
}

void check_planes(const TensorView& t, const char* argument, const TensorView& x) {
  check_tensor(t, argument, x);
  if (t.rank < 2) refuse(argument, " must have at least 2 dimensions [B, C, *spatial], got ", shape_text(t));
}

void check_style(const TensorView& style, const TensorView& x) {
  check_planes(style, "style", x);
  if ((style.sizes[0] != x.sizes[0] && style.sizes[0] != 1) || style.sizes[1] != x.sizes[1])
    refuse("style must have shape [", x.sizes[0], " or 1, ", x.sizes[1], ", *spatial], got ",
           shape_text(style));
}

void check_numbers(const TensorView& t, const char* argument, const TensorView& x) {
  check_tensor(t, argument, x);
  const bool fits = t.rank == 0 || (t.rank <= 2 && t.size(-1) == x.sizes[1] &&
                                    (t.rank == 1 || t.sizes[0] == x.sizes[0] || t.sizes[0] == 1));
  if (!fits)
    refuse(argument, " must have shape [], [", x.sizes[1], "] or [", x.sizes[0], " or 1, ", x.sizes[1],
           "], got ", shape_text(t));
}

void check_number(double value, const char* argument) {
  if (!std::isfinite(value)) refuse(argument, " must be finite, got ", value);
}

void check_result(const Arguments& a, const TensorView& y) {
  const TensorView& x = a.x;
  if (y.dtype != x.dtype) refuse("out must be ", name(x.dtype), " like x, got ", name(y.dtype));
  if (y.rank != x.rank || !std::equal(x.sizes, x.sizes + x.rank, y.sizes))
    refuse("out must have shape ", shape_text(x), ", got ", shape_text(y));
  if (y.device != x.device)
    refuse("out must be on ", device_text(x.device), " like x, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  if (overlap(y, x) == Overlap::partial)
    refuse("out must be exactly x or not share memory with it, got a partial overlap");
  const auto check_apart = [&y](const std::optional<TensorView>& t, const char* argument) {
    if (t && overlap(y, *t) != Overlap::none) refuse("out must not share memory with ", argument);
  };
  check_apart(a.style, "style");
  check_apart(a.mean, "mean");
  check_apart(a.std, "std");
}

// ---- the launch -----------------------------------------------------------------------------------

int64_t stride_of(const TensorView& t, int dim) {
  return t.sizes[dim] == 1 ? 0 : t.strides[dim];
}

// Planes of these tensors, of one shape, in row-major order: that of the sums.
void lay_out(std::initializer_list<std::pair<Planes*, const TensorView*>> tensors) {
  const TensorView& first = *tensors.begin()->second;
  Shape shape{first.rank - 2, {}};
  std::copy_n(first.sizes + 2, shape.rank, shape.size);
  Space space(kOp, shape);
  space.order_by(space.row_major(false), false);
  Space::Strides walks[2];
  int64_t* strides[2];
  size_t count = 0;
  for (const auto& [planes, view] : tensors) {
    walks[count] = space.strides(*view, 2);
    strides[count++] = planes->stride;
  }
  int64_t size[kMaxDims];
  const int dims = space.merge({walks, count}, size, {strides, count});
  for (const auto& [planes, view] : tensors) {
    planes->data = view->data;
    planes->dtype = view->dtype;
    planes->wide = view->dtype == DType::f64;
    planes->sample_stride = stride_of(*view, 0);
    planes->channel_stride = stride_of(*view, 1);
    planes->numel = space.numel();
    planes->dims = dims;
    std::copy_n(size, dims, planes->size);
  }
}

Numbers numbers_of(const TensorView& t) {
  return {t.data, t.dtype, t.rank == 2 ? stride_of(t, 0) : 0, t.rank >= 1 ? stride_of(t, t.rank - 1) : 0};
}

}  // namespace

Shape check(const Arguments& a) {
  check_planes(a.x, "x", a.x);
  if (a.style && (a.mean || a.std)) refuse("mean and std must be none where style is given, got both");
  if (!a.style && !a.mean && !a.std) refuse("style must be given, or mean and std, got none of them");
  if (a.mean.has_value() != a.std.has_value())
    refuse("mean and std must be given together, got ", a.mean ? "mean" : "std", " alone");
  if (a.style) check_style(*a.style, a.x);
  if (a.mean) check_numbers(*a.mean, "mean", a.x);
  if (a.std) check_numbers(*a.std, "std", a.x);
  check_number(a.style_weight, "style_weight");
  check_number(a.content_weight, "content_weight");
  if (!(a.eps >= 0 && std::isfinite(a.eps))) refuse("eps must be finite and at least 0, got ", a.eps);
  Shape shape{a.x.rank, {}};
  std::copy_n(a.x.sizes, a.x.rank, shape.size);
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& result) {
  check_result(a, result);
  Params p;
  p.samples = shape.size[0];
  p.channels = shape.size[1];
  p.style_weight = a.style_weight;
  p.content_weight = a.content_weight;
  p.eps = a.eps;
  const int64_t bytes = 2 * a.x.numel() * size_of(a.x.dtype);
  p.stream = result.data != a.x.data && bytes > last_level_cache_bytes();
  lay_out({{&p.x, &a.x}, {&p.y, &result}});
  if (a.style_weight == 0) return p;  // what has no weight is not read
  if (a.style) {
    lay_out({{&p.style, &*a.style}});
    p.style_samples = a.style->sizes[0];
    p.style.wide |= p.x.wide;  // or the result would have the digits of the style
  } else {
    p.mean = numbers_of(*a.mean);
    p.std = numbers_of(*a.std);
  }
  return p;
}

int64_t scratch_bytes(const Params& p) {
  return takes_one_block(p) ? 0 : bytes_of(all_pieces(p), p.samples * p.channels);
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  const Shares shares(p, threads);
  if (shares.within) return bytes_of(all_pieces(p), p.samples * p.channels);
  return shares.pieces <= kStackPieces ? 0 : bytes_of(shares.parts * shares.pieces, 0);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::channel_affine
