// SPDX-License-Identifier: Apache-2.0
// The front desk of int8_linear: checks once for all callers and backends, then lays out the launch.
#include "core/layout.h"
#include "quant/int8_linear/int8_linear.h"

namespace fastdiff::int8_linear {
namespace {

using namespace quant;

constexpr const char* kOp = "int8_linear";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_activations(const Arguments& a) {
  const TensorView& x = a.x;
  if (x.dtype != DType::i8) check_float(kOp, "x", x, x);
  if (x.rank < 1) refuse("x must have at least 1 dimension [..., K], got ", shape_text(x));
  if (x.size(-1) < 1 || x.size(-1) > kMaxInner)
    refuse("the last dimension of x must be within 1 and ", kMaxInner, ", got ", x.size(-1));
  if (a.bits != 7 && a.bits != 8) refuse("bits must be 7 or 8, got ", a.bits);
  if (x.dtype == DType::i8 && !a.x_scale) refuse("x_scale must be given for x of int8");
  if (a.x_zero_point && !a.x_scale) refuse("x_zero_point needs x_scale");
  if (a.x_scale) check_for_rows(kOp, "x_scale", *a.x_scale, DType::f32, x);
  if (a.x_zero_point) check_for_rows(kOp, "x_zero_point", *a.x_zero_point, DType::i32, x);
}

}  // namespace

void check(const Arguments& a) {
  check_activations(a);
  if (a.columns < 1) refuse("columns must be positive, got ", a.columns);
  check_epilogue(kOp, a.epilogue, a.x, a.columns);
  const int64_t slots = slots_of(a.columns, a.epilogue.gated);
  check_packed(kOp, "weight", a.weight, DType::i8, slots * round_up(a.x.size(-1), kPiece), a.x);
  check_packed(kOp, "scale", a.scale, DType::f32, slots, a.x);
  check_packed(kOp, "column_sum", a.column_sum, DType::i32, slots, a.x);
  if (a.zero_point) check_packed(kOp, "zero_point", *a.zero_point, DType::i32, slots, a.x);
}

Params prepare(const Arguments& a, const TensorView& y) {
  Params p;
  p.epilogue = epilogue_of(a.epilogue, a.x, a.columns);
  set_result(kOp, a.epilogue, a.x, y,
             {{"x_scale", a.x_scale},
              {"x_zero_point", a.x_zero_point},
              {"weight", a.weight},
              {"scale", a.scale},
              {"column_sum", a.column_sum},
              {"zero_point", a.zero_point}},
             p.epilogue);
  p.epilogue.scale = static_cast<const float*>(a.scale.data);
  p.x = rows_of(a.x);
  p.x_scale = vectors_of(a.x_scale);
  p.x_zero_point = vectors_of(a.x_zero_point);
  p.weight = static_cast<const int8_t*>(a.weight.data);
  p.column_sum = static_cast<const int32_t*>(a.column_sum.data);
  if (a.zero_point) p.zero_point = static_cast<const int32_t*>(a.zero_point->data);
  p.pieces = round_up(a.x.size(-1), kPiece) / kPiece;
  p.is_int8 = a.x.dtype == DType::i8;
  p.is_signed = p.is_int8 || a.bits == 8;
  return p;
}

namespace {

void place_rows(Params& p, int64_t bytes, Cut& cut) {
  place(p.epilogue, cut);
  p.q = cut.take<uint8_t>(bytes);
  p.row_scale = cut.take<float>(p.epilogue.rows);
  p.row_zero = cut.take<int32_t>(p.epilogue.rows);
  p.row_sum = cut.take<int32_t>(p.epilogue.rows);
}

}  // namespace

int64_t place_cpu(Params& p, const Team& team, void* scratch) {
  Cut cut(scratch);
  place_rows(p, p.padded_rows() * p.pieces * kPiece, cut);
  p.rows = cut.take<float>(parts_of_rows(p, team) * 4 * p.epilogue.inner);
  return cut.bytes();
}

int64_t place_cuda(Params& p, void* scratch) {
  Cut cut(scratch);
  const bool is_wide = is_wide_tile(p.epilogue.rows);  // what the device is, the front desk does not ask
  place_rows(p, is_wide ? wide_bytes(p.epilogue.rows, p.pieces) : p.padded_rows() * p.pieces * kPiece, cut);
  return cut.bytes();
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::int8_linear
