// SPDX-License-Identifier: Apache-2.0
// The front desk of cached_residual_add: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "attention/cached_residual_add/cached_residual_add.h"
#include "core/cache.h"
#include "core/layout.h"

namespace fastdiff::cached_residual_add {
namespace {

constexpr const char* kOp = "cached_residual_add";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_tensor(const TensorView& t, const Argument& argument, const TensorView& h) {
  if (t.device != h.device)
    refuse(argument, " must be on ", device_text(h.device), " like h, got ", device_text(t.device));
  if (!is_real_float(t.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.rank == b.rank && std::equal(a.sizes, a.sizes + a.rank, b.sizes);
}

bool broadcasts_to(const TensorView& t, const TensorView& h) {
  if (t.rank > h.rank) return false;
  for (int d = 1; d <= t.rank; ++d)
    if (t.size(-d) != 1 && t.size(-d) != h.size(-d)) return false;
  return true;
}

void check_apart(const TensorView& y, const TensorView& t, const Argument& argument, bool may_be_same) {
  const Overlap shared = overlap(y, t);
  if (shared == Overlap::partial || (shared == Overlap::same && !may_be_same))
    refuse("out must ", may_be_same ? "be exactly " + argument.text() + " or " : "", "not share memory with ",
           argument.text());
}

void check_result(const Arguments& a, const TensorView& y) {
  if (y.dtype != a.h.dtype) refuse("out must be ", name(a.h.dtype), " like h, got ", name(y.dtype));
  if (!same_shape(y, a.h)) refuse("out must have shape ", shape_text(a.h), ", got ", shape_text(y));
  if (y.device != a.h.device)
    refuse("out must be on ", device_text(a.h.device), " like h, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  check_apart(y, a.h, "h", true);
  for (size_t n = 0; n < a.components.size(); ++n)
    check_apart(y, a.components[n], {"components", static_cast<int64_t>(n)}, true);
  for (size_t n = 0; n < a.gates.size(); ++n)
    check_apart(y, a.gates[n], {"gates", static_cast<int64_t>(n)}, false);
}

}  // namespace

Shape check(const Arguments& a) {
  check_tensor(a.h, "h", a.h);
  if (a.components.size() > kMaxComponents)
    refuse("components must be at most ", kMaxComponents, ", got ",
           static_cast<int64_t>(a.components.size()));
  if (a.gate_of.size() != a.components.size())
    refuse("gate_of must have a number for each of ", static_cast<int64_t>(a.components.size()),
           " components, got ", static_cast<int64_t>(a.gate_of.size()));
  for (size_t n = 0; n < a.components.size(); ++n) {
    const Argument argument("components", static_cast<int64_t>(n));
    check_tensor(a.components[n], argument, a.h);
    if (!same_shape(a.components[n], a.h))
      refuse(argument, " must have shape ", shape_text(a.h), " like h, got ", shape_text(a.components[n]));
    if (a.gate_of[n] < -1 || a.gate_of[n] >= static_cast<int64_t>(a.gates.size()))
      refuse("gate_of must be within -1 and ", static_cast<int64_t>(a.gates.size()) - 1, ", got ",
             a.gate_of[n]);
  }
  for (size_t n = 0; n < a.gates.size(); ++n) {
    const Argument argument("gates", static_cast<int64_t>(n));
    check_tensor(a.gates[n], argument, a.h);
    if (!broadcasts_to(a.gates[n], a.h))
      refuse(argument, " must broadcast to h ", shape_text(a.h), ", got ", shape_text(a.gates[n]));
  }
  Shape shape{a.h.rank, {}};
  std::copy_n(a.h.sizes, a.h.rank, shape.size);
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& result) {
  check_result(a, result);
  Params p;
  p.components = static_cast<int>(a.components.size());
  p.wide = a.h.dtype == DType::f64;
  Space space(kOp, shape);
  space.order_by(space.strides(result), false);
  std::vector<Space::Strides> walks;
  std::vector<int64_t*> strides;
  const auto add = [&](Operand& operand, const TensorView& view) {
    operand.data = view.data;
    operand.dtype = view.dtype;
    walks.push_back(space.strides(view, 0, shape.rank - view.rank));
    strides.push_back(operand.stride);
  };
  add(p.y, result);
  add(p.h, a.h);
  for (int n = 0; n < p.components; ++n) {
    add(p.c[n], a.components[static_cast<size_t>(n)]);
    const int64_t gate = a.gate_of[static_cast<size_t>(n)];
    if (gate >= 0) add(p.g[n], a.gates[static_cast<size_t>(gate)]);
  }
  p.dims = space.merge(walks, p.size, strides);
  p.numel = result.numel();
  p.stream =
      result.data != a.h.data && (p.components + 2) * p.numel * size_of(a.h.dtype) > last_level_cache_bytes();
  for (const TensorView& c : a.components) p.stream &= result.data != c.data;
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::cached_residual_add
