// SPDX-License-Identifier: Apache-2.0
// The front desk of dwt: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "wavelet/dwt/dwt_config.h"
#include "wavelet/dwt/dwt_math.h"
#include "wavelet/leading.h"

namespace fastdiff::dwt {
namespace {

using wavelet::Axis;

constexpr const char* kOp = "dwt";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

int leading_rank(const Arguments& a) {
  return a.x.rank - static_cast<int>(a.ndim);
}

int64_t bands_of(const Arguments& a, int64_t size) {
  return wavelet::band_size(size, static_cast<int>(a.taps.size() / 2), static_cast<wavelet::Edge>(a.edge));
}

void check_grid(const Arguments& a) {
  const auto grid = *a.grid;
  bool fits = static_cast<int64_t>(grid.size()) == a.ndim;
  std::array<int64_t, wavelet::kMaxSpatial> bands{};
  for (size_t d = 0; d < static_cast<size_t>(a.ndim); ++d) {
    bands[d] = bands_of(a, a.x.sizes[leading_rank(a) + static_cast<int>(d)]);
    fits = fits && grid[d] >= bands[d];
  }
  if (!fits)
    refuse("grid must be ", a.ndim, " sizes of at least the bands' ",
           list_text(std::span(bands).first(static_cast<size_t>(a.ndim))), ", got ", list_text(grid));
}

void check_result(const Arguments& a, const Shape& shape, const TensorView& y) {
  const TensorView& x = a.x;
  if (y.dtype != x.dtype) refuse("out must be ", name(x.dtype), " like x, got ", name(y.dtype));
  if (y.rank != shape.rank || !std::equal(shape.size, shape.size + shape.rank, y.sizes))
    refuse("out must have shape ",
           shape_text({nullptr, x.dtype, shape.rank, shape.size, shape.size, x.device}), ", got ",
           shape_text(y));
  if (y.device != x.device)
    refuse("out must be on ", device_text(x.device), " like x, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  if (overlap(y, x) != Overlap::none) refuse("out must not share memory with x");
  if (a.scale && overlap(y, *a.scale) != Overlap::none) refuse("out must not share memory with scale");
}

}  // namespace

Shape check(const Arguments& a) {
  const TensorView& x = a.x;
  wavelet::check_bank(kOp, a.taps, a.ndim, a.edge);
  wavelet::check_float(kOp, "x", x, x, "x");
  if (x.rank < a.ndim || x.rank + 1 > kMaxRank)
    refuse("x must have ", a.ndim, " to ", kMaxRank - 1, " dimensions, got ", shape_text(x));
  for (int d = leading_rank(a); d < x.rank; ++d)
    if (x.sizes[d] < 1)
      refuse("x must have at least one sample in each transformed dimension, got ", shape_text(x));
  if (a.grid) check_grid(a);
  const int64_t bands = int64_t{1} << a.ndim;
  if (a.scale) wavelet::check_numbers(kOp, "scale", *a.scale, x, "x", x.sizes, leading_rank(a), bands);
  Shape shape;
  shape.rank = x.rank + 1;
  const int leading = leading_rank(a);
  std::copy_n(x.sizes, leading, shape.size);
  shape.size[leading] = bands;
  int64_t outermost = 0;
  for (int d = 0; d < x.rank; ++d) {
    const int to = d < leading ? d : d + 1;
    if (d >= leading) {
      shape.size[to] = a.grid ? (*a.grid)[static_cast<size_t>(d - leading)] : bands_of(a, x.sizes[d]);
      outermost = std::max(outermost, x.strides[d]);
    }
    shape.stride_like[to] = 2 * x.strides[d];
  }
  shape.stride_like[leading] = 2 * outermost + 1;  // just outside of the outermost spatial dimension
  shape.contiguous = is_contiguous(x);
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& y) {
  check_result(a, shape, y);
  const TensorView& x = a.x;
  const int ndim = static_cast<int>(a.ndim), leading = leading_rank(a);
  Params p;
  p.dtype = x.dtype;
  p.ndim = ndim;
  p.edge = static_cast<wavelet::Edge>(a.edge);
  p.stencil = wavelet::forward_stencil(a.taps, p.edge);
  p.x = x.data;
  p.y = y.data;
  p.divide = a.divide;
  for (int d = 0; d < ndim; ++d)
    p.axis[d] = {x.sizes[leading + d],       bands_of(a, x.sizes[leading + d]),
                 y.sizes[leading + 1 + d],   x.strides[leading + d],
                 y.strides[leading + 1 + d], y.strides[leading] << (ndim - 1 - d)};
  wavelet::Leading<kOperands> dims(x.sizes, leading);
  dims.add(kX, x);
  dims.add(kY, y);
  if (a.scale) p.scale = dims.add_numbers(kScale, *a.scale);
  Axis& last = p.axis[ndim - 1];
  if (last.size == 1) last.x = last.y;  // one sample has no stride of its own
  p.group = dims.innermost(last.x, last.y, kX, kY);
  p.x_rows = last.x == p.group;
  p.y_rows = last.y == p.group || last.grid == 1;
  p.planes = dims.planes();
  return p;
}

int64_t Params::numel() const {
  int64_t n = planes.count * group << ndim;
  for (int d = 0; d < ndim; ++d) n *= axis[d].grid;
  return n;
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return threads * tiling_of(p).numel() * (p.dtype == DType::f64 ? 8 : 4);
}

int64_t scratch_bytes(const Params& p) {
  if (takes_march(p)) return 0;
  int64_t numel = 0;
  for (int axis = 0; axis + 1 < p.ndim; ++axis) numel += intermediate_numel(p, axis);
  return numel * (p.dtype == DType::f64 ? 8 : 4);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::dwt
