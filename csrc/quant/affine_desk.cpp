// SPDX-License-Identifier: Apache-2.0
#include "quant/affine.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/cache.h"
#include "quant/operands.h"

namespace fastdiff::quant {
namespace {

void check_zero_dtype(const char* op, const TensorView& t, Device device) {
  if (t.device != device)
    refuse(op, "zero_point must be on ", device_text(device), " like the input, got ", device_text(t.device));
  if (t.dtype != DType::i32) refuse(op, "zero_point must be int32, got ", name(t.dtype));
}

void check_table(const char* op, const char* argument, const TensorView& t, int64_t steps) {
  if (t.rank != 1 || t.sizes[0] != steps || steps < 1)
    refuse(op, argument, " must have shape [", steps < 1 ? "T" : std::to_string(steps),
           "], at least one (a step is given), got ", shape_text(t));
}

void check_step(const char* op, const TensorView& step, const TensorView& x, int64_t steps) {
  if (step.device != x.device)
    refuse(op, "step must be on ", device_text(x.device), " like the input, got ", device_text(step.device));
  if (step.dtype != DType::i64) refuse(op, "step must be int64, got ", name(step.dtype));
  const bool per_sample = x.rank > 1 && step.rank == 1 && step.sizes[0] == x.sizes[0];
  if (!per_sample && (step.numel() != 1 || step.rank > 1))
    refuse(op, "step must have one element or one for each of ", x.rank > 1 ? x.sizes[0] : 1,
           " samples, got shape ", shape_text(step));
  if (x.device.type != DeviceType::cpu) return;
  for (int64_t b = 0; b < step.numel(); ++b) {
    const int64_t at = static_cast<const int64_t*>(step.data)[step.rank > 0 ? b * step.strides[0] : 0];
    if (at < 0 || at >= steps) refuse(op, "step must be within 0 and ", steps - 1, ", got ", at);
  }
}

void check_scale(const char* op, const char* argument, const TensorView& t, const TensorView& x,
                 Scales scales) {
  if (t.numel() == 1) return;
  if (scales == Scales::one) refuse(op, argument, " must have one element, got shape ", shape_text(t));
  if (!broadcasts_to(t, x))
    refuse(op, argument, " must broadcast to ", shape_text(x), ", got ", shape_text(t));
}

}  // namespace

void check_affine(const char* op, const AffineArguments& a, const TensorView& x, Scales scales) {
  check_float(op, "scale", a.scale, x.device);
  if (a.zero_point) check_zero_dtype(op, *a.zero_point, x.device);
  if (a.step) {
    const int64_t steps = a.scale.rank > 0 ? a.scale.sizes[0] : 0;
    check_table(op, "scale", a.scale, steps);
    if (a.zero_point) check_table(op, "zero_point", *a.zero_point, steps);
    return check_step(op, *a.step, x, steps);
  }
  check_scale(op, "scale", a.scale, x, scales);
  if (a.zero_point) check_scale(op, "zero_point", *a.zero_point, x, scales);
}

void check_range(const char* op, int64_t low, int64_t high, int64_t least, int64_t most) {
  if (low < least || high > most || low >= high)
    refuse(op, "quant_min and quant_max must be within ", least, " and ", most, ", the first less, got ", low,
           " and ", high);
}

void check_apart_from_affine(const char* op, const TensorView& result, const AffineArguments& a) {
  check_apart(op, "out", result, "scale", a.scale);
  check_apart(op, "out", result, "zero_point", a.zero_point);
  check_apart(op, "out", result, "step", a.step);
}

Elements elements_of(const char* op, const TensorView& x, const AffineArguments& a, const TensorView& y,
                     const std::optional<TensorView>& gradient) {
  Elements e;
  const bool apart = a.step && a.step->numel() > 1;
  if (a.step) {
    e.affine.step = static_cast<const int64_t*>(a.step->data);
    e.affine.step_stride = apart ? a.step->strides[0] : 0;
    e.affine.steps = a.scale.sizes[0];
    e.affine.scale_row = a.scale.strides[0];
    e.affine.zero_row = a.zero_point ? a.zero_point->strides[0] : 0;
  }
  Shape shape{x.rank, {}};
  std::copy_n(x.sizes, x.rank, shape.size);
  Space space(op, shape);
  space.order_by(space.strides(y), apart);
  constexpr size_t kMost = 5;
  std::array<Space::Strides, kMost> walks{};
  std::array<int64_t*, kMost> strides{};
  size_t count = 0;
  const auto add = [&](Operand& operand, const TensorView& view, bool is_table = false) {
    operand.data = view.data;
    operand.dtype = view.dtype;
    if (view.numel() != 1 && !is_table) walks[count] = space.strides(view, 0, x.rank - view.rank);
    if (apart) operand.sample_stride = walks[count][0];
    strides[count++] = operand.stride;
  };
  add(e.y, y);
  add(e.x, x);
  add(e.affine.scale, a.scale, a.step.has_value());
  if (a.zero_point) add(e.affine.zero, *a.zero_point, a.step.has_value());
  if (gradient) add(e.gradient, *gradient);
  e.dims = space.merge({walks.data(), count}, e.size, {strides.data(), count});
  e.samples = space.samples();
  e.numel = x.numel() == 0 ? 0 : space.numel();
  e.stream = x.data != y.data && x.numel() * (size_of(x.dtype) + size_of(y.dtype)) > last_level_cache_bytes();
  return e;
}

}  // namespace fastdiff::quant
