// SPDX-License-Identifier: Apache-2.0
// The front desk of lp_range_search: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <cmath>

#include "core/layout.h"
#include "core/space.h"
#include "quant/lp_range_search/lp_range_search_math.h"

namespace fastdiff::lp_range_search {
namespace {

constexpr const char* kOp = "lp_range_search";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_result(const Arguments& a, const char* argument, const TensorView& t, DType dtype) {
  const TensorView& x = a.x;
  if (t.dtype != dtype) refuse(argument, " must be ", name(dtype), ", got ", name(t.dtype));
  if (t.device != x.device)
    refuse(argument, " must be on ", device_text(x.device), " like x, got ", device_text(t.device));
  const std::string shape = a.by_rows ? "[" + std::to_string(x.sizes[0]) + "]" : "[]";
  if (t.rank != (a.by_rows ? 1 : 0) || (a.by_rows && t.sizes[0] != x.sizes[0]))
    refuse(argument, " must have shape ", shape, ", got ", shape_text(t));
  if (!elements_are_distinct(t)) refuse(argument, " must not have elements that share memory (expanded?)");
  if (overlap(t, x) != Overlap::none) refuse(argument, " must not share memory with x");
}

// log2(1 + f) from sqrt(1/2) - 1 to sqrt(2) - 1, error 2.8e-7: a minimax polynomial.
constexpr double kLog2[kLogTerms] = {1.3237313112e-07, 1.4427006245, -0.7213841677, 0.4804354906,
                                     -0.3588048220,    0.2974391580, -0.2736498117, 0.1711239070};

}  // namespace

void check(const Arguments& a) {
  if (!is_real_float(a.x.dtype))
    refuse("x must be float32, float16, bfloat16 or float64, got ", name(a.x.dtype));
  if (a.by_rows && a.x.rank == 0) refuse("x must have at least 1 dimension [rows, ...] for dim=0, got []");
  if (!(a.p > 0 && a.p <= 4)) refuse("p must be above 0 and at most 4, got ", a.p);
  if (a.candidates < 1 || a.candidates > kMostCandidates)
    refuse("candidates must be 1 to ", kMostCandidates, ", got ", a.candidates);
  if (a.bits < 1 || a.bits > 8) refuse("bits must be 1 to 8, got ", a.bits);
  const int64_t rows = a.by_rows ? a.x.sizes[0] : 1;
  if (rows > 0 && a.x.numel() == 0)
    refuse("x must have elements to find the range of, got ", shape_text(a.x));
}

Params prepare(const Arguments& a, const Results& results) {
  check_result(a, "scale", results.scale, DType::f32);
  check_result(a, "zero_point", results.zero_point, DType::i32);
  if (overlap(results.scale, results.zero_point) != Overlap::none)
    refuse("zero_point must not share memory with scale");
  Params p;
  const TensorView& x = a.x;
  Shape shape{x.rank, {}};
  std::copy_n(x.sizes, x.rank, shape.size);
  // Row-major, whatever lies how in memory: the order of the sum
  Space space(kOp, shape);
  space.order_by(space.row_major(false), a.by_rows);
  const Space::Strides strides = space.strides(x);
  int64_t* const merged[] = {p.x.stride};
  p.dims = space.merge({&strides, 1}, p.size, merged);
  p.x.data = x.data;
  p.x.dtype = x.dtype;
  if (a.by_rows) p.x.sample_stride = strides[0];
  p.rows = space.samples();
  p.numel = space.numel();
  p.scale = static_cast<float*>(results.scale.data);
  p.zero_point = static_cast<int32_t*>(results.zero_point.data);
  p.scale_stride = a.by_rows ? results.scale.strides[0] : 0;
  p.zero_point_stride = a.by_rows ? results.zero_point.strides[0] : 0;
  p.candidates = static_cast<int>(a.candidates);
  p.levels = (1 << a.bits) - 1;
  p.half_power = static_cast<float>(a.p / 2);
  for (int n = 0; n < kLogTerms; ++n) p.log_terms[n] = static_cast<float>(a.p / 2 * kLog2[n]);
  for (int c = 0; c < p.candidates; ++c) p.weight[c] = std::pow(c + 1.0, a.p);
  p.wide = x.dtype == DType::f64;
  return p;
}

int64_t scratch_bytes(const Params& p) {
  const int64_t of_row = chunks_of(p) * p.candidates + 1, of_chunk = chunks_of(p) * kRangeNumbers;
  return (p.rows * (of_row + of_chunk) + 1) * static_cast<int64_t>(sizeof(double));
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::lp_range_search
