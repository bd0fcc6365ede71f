// SPDX-License-Identifier: Apache-2.0
// The front desk of weight_linear: checks once for all callers and backends, then lays out the launch.
#include "quant/weight_linear/weight_linear.h"

#include <algorithm>

#include "core/layout.h"

namespace fastdiff::weight_linear {
namespace {

using namespace quant;

constexpr const char* kOp = "weight_linear";
constexpr int64_t kMaxInner = int64_t{1} << 24;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_scales(const Arguments& a, int64_t slots) {
  const auto scheme = static_cast<Scheme>(a.scheme);
  if (scheme == Scheme::bf16) {
    if (a.scale || a.zero_point) refuse("a weight of bfloat16 has neither scale nor zero_point");
    return;
  }
  if (!a.scale) refuse("scale must be given for a weight of integers or e4m3");
  if (scheme == Scheme::fp8 && a.zero_point) refuse("a weight of e4m3 has no zero_point");
  int64_t count = slots;
  if (scheme == Scheme::int4) {
    if (a.group != 32 && a.group != 64 && a.group != 128)
      refuse("group must be 32, 64 or 128, got ", a.group);
    count *= round_up(a.x.size(-1), a.group) / a.group;
  }
  check_packed(kOp, "scale", *a.scale, DType::f32, count, a.x);
  if (a.zero_point)
    check_packed(kOp, "zero_point", *a.zero_point, scheme == Scheme::int8 ? DType::i32 : DType::f32, count,
                 a.x);
}

void check_rounding(const Arguments& a) {
  const bool is_fp8 = static_cast<Scheme>(a.scheme) == Scheme::fp8;
  if (a.round_x && !is_fp8) refuse("round_x needs a weight of scheme 3 (fp8), got ", a.scheme);
  if (a.x_scale && !a.round_x) refuse("x_scale needs round_x");
  if (a.x.dtype == DType::u8 && !a.x_scale) refuse("x_scale must be given for x of e4m3");
  if (a.x_scale) check_for_rows(kOp, "x_scale", *a.x_scale, DType::f32, a.x);
}

}  // namespace

void check(const Arguments& a) {
  const TensorView& x = a.x;
  if (!(a.round_x && x.dtype == DType::u8)) check_float(kOp, "x", x, x);
  if (x.rank < 1) refuse("x must have at least 1 dimension [..., K], got ", shape_text(x));
  if (x.size(-1) < 1 || x.size(-1) > kMaxInner)
    refuse("the last dimension of x must be within 1 and ", kMaxInner, ", got ", x.size(-1));
  if (a.columns < 1) refuse("columns must be positive, got ", a.columns);
  if (a.scheme < 0 || a.scheme >= kSchemes)
    refuse("scheme must be 0 (int8), 1 (int4), 2 (bf16) or 3 (fp8), got ", a.scheme);
  check_rounding(a);
  check_epilogue(kOp, a.epilogue, x, a.columns);
  const int64_t slots = slots_of(a.columns, a.epilogue.gated), numel = slots * round_up(x.size(-1), kPiece);
  constexpr DType kTypes[] = {DType::i8, DType::u8, DType::bf16, DType::u8};
  check_packed(kOp, "weight", a.weight, kTypes[a.scheme],
               static_cast<Scheme>(a.scheme) == Scheme::int4 ? numel / 2 : numel, x);
  check_scales(a, slots);
}

Params prepare(const Arguments& a, const TensorView& y) {
  Params p;
  p.epilogue = epilogue_of(a.epilogue, a.x, a.columns);
  set_result(kOp, a.epilogue, a.x, y,
             {{"x_scale", a.x_scale}, {"weight", a.weight}, {"scale", a.scale}, {"zero_point", a.zero_point}},
             p.epilogue);
  p.x = rows_of(a.x);
  p.rounds = a.round_x;
  p.x_scale = vectors_of(a.x_scale);
  p.scheme = static_cast<Scheme>(a.scheme);
  p.weight = static_cast<const char*>(a.weight.data);
  p.panel_bytes = round_up(a.x.size(-1), kPiece) / kEight * words_of_eight(p.scheme) * kWordRow;
  if (p.scheme == Scheme::int8 || p.scheme == Scheme::fp8) {
    p.epilogue.scale = static_cast<const float*>(a.scale->data);
    if (a.zero_point) p.integers = static_cast<const int32_t*>(a.zero_point->data);
  } else if (p.scheme == Scheme::int4) {
    p.scale = static_cast<const float*>(a.scale->data);
    if (a.zero_point) p.zero_point = static_cast<const float*>(a.zero_point->data);
    p.group = a.group;
  }
  return p;
}

namespace {

void place_rows(Params& p, Cut& cut) {
  place(p.epilogue, cut);
  if (p.rounds) p.epilogue.row_scale = p.row_scale = cut.take<float>(p.epilogue.rows);
}

}  // namespace

int64_t place_cpu(Params& p, const Team& team, void* scratch) {
  Cut cut(scratch);
  place_rows(p, cut);
  // Or as tiles of 16 rows by 32 bfloat16.
  p.blocks = cut.take<float>(std::max(p.block_count() * p.epilogue.rows * kBlockStride,
                                      round_up(p.epilogue.rows, 16) * round_up(p.epilogue.inner, 32) / 2));
  if (p.epilogue.rank > 0 || p.rounds)
    p.rows = cut.take<float>(parts_of_rows(p, team) * kRowUnit * p.epilogue.inner);
  if (p.takes_tiles()) p.tiles = cut.take<char>(team.threads * kTilesBytes);
  return cut.bytes();
}

int64_t place_cuda(Params& p, void* scratch) {
  Cut cut(scratch);
  place_rows(p, cut);
  // Floats: more than wide tiles of bytes need, which are at most twice as many each way.
  p.blocks = cut.take<float>(round_up(p.epilogue.rows, 16) * round_up(p.epilogue.inner, kPiece));
  return cut.bytes();
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::weight_linear
