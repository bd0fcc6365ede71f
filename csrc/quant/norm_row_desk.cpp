// SPDX-License-Identifier: Apache-2.0
#include "quant/norm_row.h"

#include <array>
#include <cmath>

#include "core/space.h"
#include "quant/operands.h"

namespace fastdiff::quant {
namespace {

void check_row(const char* op, const char* argument, const std::optional<TensorView>& t,
               const TensorView& x) {
  if (!t) return;
  check_float(op, argument, *t, x.device);
  if (t->rank != 1 || t->sizes[0] != x.size(-1))
    refuse(op, argument, " must have shape [", x.size(-1), "], got ", shape_text(*t));
}

// [K], [B|1, K], or of the rank of x.
bool is_modulation(const TensorView& t, const TensorView& x) {
  const int64_t k = x.size(-1);
  if (t.rank == 1) return t.sizes[0] == k;
  if (t.rank == 2 && x.rank > 2) return (t.sizes[0] == 1 || t.sizes[0] == x.sizes[0]) && t.sizes[1] == k;
  return t.rank == x.rank && t.size(-1) == k && broadcasts_to(t, x);
}

void check_modulation(const char* op, const char* argument, const std::optional<TensorView>& t,
                      const TensorView& x) {
  if (!t) return;
  check_float(op, argument, *t, x.device);
  if (!is_modulation(*t, x))
    refuse(op, argument, " must have shape [", x.size(-1), "], [", x.sizes[0], " or 1, ", x.size(-1),
           "] or one that broadcasts to x ", shape_text(x), ", got ", shape_text(*t));
}

// A tensor without its last dimension.
TensorView leading(const TensorView& t) {
  return {t.data, t.dtype, t.rank - 1, t.sizes, t.strides, t.device};
}

}  // namespace

void check_rows(const char* op, const TensorView& x, const NormArguments& norm) {
  check_float(op, "x", x, x.device);
  if (x.rank < 1) refuse(op, "x must have at least one dimension [..., K], got ", shape_text(x));
  if (norm.eps && !(*norm.eps >= 0 && std::isfinite(*norm.eps)))
    refuse(op, "eps must be finite and at least 0, got ", *norm.eps);
  if (norm.rms && !norm.eps) refuse(op, "rms needs eps, got none");
  check_row(op, "weight", norm.weight, x);
  check_row(op, "bias", norm.bias, x);
  check_modulation(op, "scale_by", norm.scale_by, x);
  check_modulation(op, "shift", norm.shift, x);
}

void check_apart_from_rows(const char* op, const char* argument, const TensorView& result,
                           const TensorView& x, const NormArguments& norm) {
  check_apart(op, argument, result, "x", x);
  check_apart(op, argument, result, "weight", norm.weight);
  check_apart(op, argument, result, "bias", norm.bias);
  check_apart(op, argument, result, "scale_by", norm.scale_by);
  check_apart(op, argument, result, "shift", norm.shift);
}

NormedRows rows_of(const char* op, const TensorView& x, const NormArguments& norm,
                   std::initializer_list<RowResult> results) {
  NormedRows rows;
  rows.columns = x.size(-1);
  rows.norm = !norm.eps ? Norm::none : norm.rms ? Norm::rms : Norm::layer;
  rows.eps = static_cast<float>(norm.eps.value_or(0));
  Shape shape{x.rank - 1, {}};
  for (int d = 0; d < shape.rank; ++d) shape.size[d] = x.sizes[d];
  Space space(op, shape);
  space.order_by(space.strides(leading(x)), false);
  constexpr size_t kMost = 8;
  std::array<Space::Strides, kMost> walks{};
  std::array<int64_t*, kMost> strides{};
  size_t count = 0;
  const auto add = [&](RowTensor& tensor, const TensorView& view) {
    tensor.data = view.data;
    tensor.dtype = view.dtype;
    tensor.column = view.stride(-1);
    walks[count] = space.strides(leading(view));
    strides[count++] = tensor.stride;
  };
  const auto add_optional = [&](RowTensor& tensor, const std::optional<TensorView>& view) {
    if (view) add(tensor, *view);
  };
  add(rows.x, x);
  add_optional(rows.weight, norm.weight);
  add_optional(rows.bias, norm.bias);
  add_optional(rows.scale_by, norm.scale_by);
  add_optional(rows.shift, norm.shift);
  for (const RowResult& result : results) add(*result.tensor, *result.view);
  rows.dims = space.merge({walks.data(), count}, rows.size, {strides.data(), count});
  rows.rows = space.numel();
  for (int d = 0; d < shape.rank; ++d)
    if (shape.size[d] == 0) rows.rows = 0;
  return rows;
}

}  // namespace fastdiff::quant
