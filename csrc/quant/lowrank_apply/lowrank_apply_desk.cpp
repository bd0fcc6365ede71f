// SPDX-License-Identifier: Apache-2.0
// The front desk of lowrank_apply: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "core/space.h"
#include "quant/lowrank_apply/lowrank_apply_math.h"

namespace fastdiff::lowrank_apply {
namespace {

constexpr const char* kOp = "lowrank_apply";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

using OptionalView = std::optional<TensorView>;

void check_tensor(const char* argument, const TensorView& t, const TensorView& x) {
  if (t.device != x.device)
    refuse(argument, " must be on ", device_text(x.device), " like x, got ", device_text(t.device));
  if (!is_real_float(t.dtype))
    refuse(argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
}

int64_t samples_of(const TensorView& x) {
  return x.rank > 1 ? x.sizes[0] : 1;
}

void check_gates(const char* argument, const OptionalView& t, const Arguments& a) {
  if (!t) return;
  check_tensor(argument, *t, a.x);
  const int64_t b = samples_of(a.x), r = a.down.sizes[0];
  if (t->rank != 2 || (t->sizes[0] != 1 && t->sizes[0] != b) || t->sizes[1] != r)
    refuse(argument, " must have shape [", b, " or 1, ", r, "], got ", shape_text(*t));
}

void check_coefficient(const char* argument, const OptionalView& t, const Arguments& a) {
  if (!t) return;
  check_tensor(argument, *t, a.x);
  const int64_t b = samples_of(a.x);
  if (t->rank > 1 || (t->rank == 1 && t->sizes[0] != 1 && t->sizes[0] != b))
    refuse(argument, " must have shape [] or [", b, " or 1], got ", shape_text(*t));
}

// [..., N] with the rows of x.
void check_rows(const char* argument, const TensorView& t, const Arguments& a) {
  const TensorView& x = a.x;
  if (t.rank == x.rank && t.size(-1) == a.up.sizes[0] && std::equal(x.sizes, x.sizes + x.rank - 1, t.sizes))
    return;
  std::string wanted = "[";
  for (int d = 0; d + 1 < x.rank; ++d) wanted += std::to_string(x.sizes[d]) + ", ";
  refuse(argument, " must have shape ", wanted, a.up.sizes[0], "], got ", shape_text(t));
}

void check_apart(const TensorView& y, const char* argument, const OptionalView& t) {
  if (t && overlap(y, *t) != Overlap::none) refuse("out must not share memory with ", argument);
}

// A row is read before it is written.
void check_same_or_apart(const TensorView& y, const char* argument, const OptionalView& t) {
  if (t && overlap(y, *t) == Overlap::partial)
    refuse("out must be exactly ", argument, " or not share memory with ", argument);
}

Factor factor_of(const TensorView& t, int step, int column) {
  return {t.data, t.dtype, t.strides[step], t.strides[column]};
}

// Of dimensions [samples, elements]; `rank` says which of them there are.
Numbers numbers_of(const OptionalView& t, bool has_samples) {
  if (!t) return {};
  Numbers numbers{t->data, t->dtype};
  if (has_samples && t->rank > 0 && t->sizes[0] > 1) numbers.sample = t->strides[0];
  if (t->rank > (has_samples ? 1 : 0)) numbers.element = t->strides[t->rank - 1];
  return numbers;
}

}  // namespace

void check(const Arguments& a) {
  check_tensor("x", a.x, a.x);
  check_tensor("down", a.down, a.x);
  check_tensor("up", a.up, a.x);
  if (a.x.rank < 1) refuse("x must have at least 1 dimension [..., K], got []");
  const int64_t k = a.x.size(-1);
  if (a.down.rank != 2 || a.down.sizes[1] != k)
    refuse("down must have shape [r, ", k, "], got ", shape_text(a.down));
  const int64_t r = a.down.sizes[0];
  if (a.up.rank != 2 || a.up.sizes[1] != r) refuse("up must have shape [N, ", r, "], got ", shape_text(a.up));
  const int64_t n = a.up.sizes[0];
  check_gates("gates", a.gates, a);
  check_gates("offset", a.offset, a);
  check_coefficient("a", a.a, a);
  check_coefficient("b", a.b, a);
  if (a.a && n != k) refuse("a needs as many outputs as inputs, got ", n, " and ", k);
  if (a.b && !a.mu) refuse("b is the coefficient of mu, which is not given");
  if (a.mu) {
    check_tensor("mu", *a.mu, a.x);
    if (a.mu->rank != 1 || a.mu->sizes[0] != n)
      refuse("mu must have shape [", n, "], got ", shape_text(*a.mu));
  }
  if (a.base) {
    check_tensor("base", *a.base, a.x);
    check_rows("base", *a.base, a);
  }
}

Params prepare(const Arguments& a, const TensorView& y) {
  const TensorView& x = a.x;
  if (y.device != x.device)
    refuse("out must be on ", device_text(x.device), " like x, got ", device_text(y.device));
  if (y.dtype != x.dtype) refuse("out must be ", name(x.dtype), " like x, got ", name(y.dtype));
  check_rows("out", y, a);
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  check_same_or_apart(y, "x", x);
  check_same_or_apart(y, "base", a.base);
  check_apart(y, "down", a.down);
  check_apart(y, "up", a.up);
  check_apart(y, "gates", a.gates);
  check_apart(y, "offset", a.offset);
  check_apart(y, "a", a.a);
  check_apart(y, "mu", a.mu);
  check_apart(y, "b", a.b);

  Params p;
  p.inputs = x.size(-1);
  p.rank = a.down.sizes[0];
  p.outputs = a.up.sizes[0];
  // The rows of a sample: dimensions that x, base and y walk alike become one.
  Shape shape{std::max(1, x.rank - 1), {1}};
  std::copy_n(x.sizes, x.rank - 1, shape.size);
  Space space(kOp, shape);
  Operands<3> operands;
  const auto add = [&](Rows& rows, TensorView t) {
    rows.column = t.stride(-1);
    --t.rank;
    operands.add(rows.at, t, space);
  };
  add(p.y, y);
  add(p.x, x);
  if (a.base) add(p.base, *a.base);
  space.order_by(operands.first(), true);
  p.dims = operands.merge(space, p.size);
  p.samples = space.samples();
  p.rows_of_sample = space.numel();
  p.down = factor_of(a.down, 1, 0);
  p.up = factor_of(a.up, 1, 0);
  p.gates = numbers_of(a.gates, true);
  p.offset = numbers_of(a.offset, true);
  p.a = numbers_of(a.a, true);
  p.b = numbers_of(a.b, true);
  p.mu = numbers_of(a.mu, false);
  p.wide = x.dtype == DType::f64;
  return p;
}

int64_t scratch_bytes(const Params& p) {
  const int64_t copies = panels_numel(p.inputs, p.rank) + panels_numel(p.rank, p.outputs);
  return (p_numel(p) + (is_streamed(p) ? sums_numel(p) : copies)) * (p.wide ? 8 : 4);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::lowrank_apply
