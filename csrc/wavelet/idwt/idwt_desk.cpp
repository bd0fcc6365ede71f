// SPDX-License-Identifier: Apache-2.0
// The front desk of idwt: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <vector>

#include "wavelet/idwt/idwt_config.h"
#include "wavelet/idwt/idwt_math.h"
#include "wavelet/leading.h"

namespace fastdiff::idwt {
namespace {

using wavelet::Axis;

constexpr const char* kOp = "idwt";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

int leading_rank(const Arguments& a) {
  return a.y.rank - static_cast<int>(a.ndim) - 1;
}

int64_t bands_of(const Arguments& a, int64_t size) {
  return wavelet::band_size(size, static_cast<int>(a.taps.size() / 2), static_cast<wavelet::Edge>(a.edge));
}

void check_size(const Arguments& a, const TensorView& coefficients, const char* argument) {
  bool fits = true;
  std::array<int64_t, wavelet::kMaxSpatial> bands{};
  const size_t ndim = static_cast<size_t>(a.ndim);
  for (size_t d = 0; d < ndim; ++d) {
    bands[d] = bands_of(a, a.size[d]);
    fits = fits && coefficients.size(static_cast<int>(d) - static_cast<int>(ndim)) >= bands[d];
  }
  if (!fits)
    refuse(argument, " must have at least ", list_text(std::span(bands).first(ndim)),
           " coefficients in its last dimensions for size ", list_text(a.size), ", got ",
           shape_text(coefficients));
}

void check_approximation(const Arguments& a) {
  const TensorView& low = *a.approximation;
  wavelet::check_float(kOp, "approximation", low, a.y, "y");
  if (low.dtype != a.y.dtype)
    refuse("approximation must be ", name(a.y.dtype), " like y, got ", name(low.dtype));
  if (low.rank != a.y.rank - 1 || !std::equal(a.y.sizes, a.y.sizes + leading_rank(a), low.sizes))
    refuse("approximation must have the dimensions of y without that of the bands, ", shape_text(a.y),
           ", got ", shape_text(low));
  check_size(a, low, "approximation");
}

void check_result(const Arguments& a, const Shape& shape, const TensorView& x) {
  const TensorView& y = a.y;
  if (x.dtype != y.dtype) refuse("out must be ", name(y.dtype), " like y, got ", name(x.dtype));
  if (x.rank != shape.rank || !std::equal(shape.size, shape.size + shape.rank, x.sizes))
    refuse("out must have shape ",
           shape_text({nullptr, y.dtype, shape.rank, shape.size, shape.size, y.device}), ", got ",
           shape_text(x));
  if (x.device != y.device)
    refuse("out must be on ", device_text(y.device), " like y, got ", device_text(x.device));
  if (!elements_are_distinct(x)) refuse("out must not have elements that share memory (expanded?)");
  const auto check_apart = [&x](const TensorView& t, const char* argument) {
    if (overlap(x, t) != Overlap::none) refuse("out must not share memory with ", argument);
  };
  check_apart(y, "y");
  if (a.scale) check_apart(*a.scale, "scale");
  if (a.threshold) check_apart(*a.threshold, "threshold");
  if (a.approximation) check_apart(*a.approximation, "approximation");
}

}  // namespace

Shape check(const Arguments& a) {
  const TensorView& y = a.y;
  wavelet::check_bank(kOp, a.taps, a.ndim, a.edge);
  wavelet::check_float(kOp, "y", y, y, "y");
  const int64_t bands = int64_t{1} << a.ndim, here = a.approximation ? bands - 1 : bands;
  if (y.rank < a.ndim + 1 || y.size(static_cast<int>(-1 - a.ndim)) != here)
    refuse("y must have ", here, " bands in the dimension before the last ", a.ndim, ", got ", shape_text(y));
  if (static_cast<int64_t>(a.size.size()) != a.ndim ||
      !std::all_of(a.size.begin(), a.size.end(), [](int64_t n) { return n >= 1; }))
    refuse("size must be ", a.ndim, " sizes of at least 1, got ", list_text(a.size));
  check_size(a, y, "y");
  const int leading = leading_rank(a);
  if (a.approximation) check_approximation(a);
  if (a.scale) wavelet::check_numbers(kOp, "scale", *a.scale, y, "y", y.sizes, leading, bands);
  if (a.threshold) wavelet::check_numbers(kOp, "threshold", *a.threshold, y, "y", y.sizes, leading, bands);
  Shape shape;
  shape.rank = y.rank - 1;
  for (int d = 0; d < shape.rank; ++d) {
    shape.size[d] = d < leading ? y.sizes[d] : a.size[static_cast<size_t>(d - leading)];
    shape.stride_like[d] = y.strides[d < leading ? d : d + 1];
  }
  shape.contiguous = is_contiguous(y);
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& x) {
  check_result(a, shape, x);
  const TensorView& y = a.y;
  const int ndim = static_cast<int>(a.ndim), leading = leading_rank(a);
  Params p;
  p.dtype = y.dtype;
  p.ndim = ndim;
  p.edge = static_cast<wavelet::Edge>(a.edge);
  p.stencil = wavelet::backward_stencil(a.taps);
  p.offset = wavelet::signal_offset(p.stencil.length, p.edge);
  p.x = x.data;
  p.divide = a.divide;
  p.hard = a.hard;
  const int64_t band = y.strides[leading];
  for (int d = 0; d < ndim; ++d)
    p.axis[d] = {x.sizes[leading + d],   bands_of(a, x.sizes[leading + d]), y.sizes[leading + 1 + d],
                 x.strides[leading + d], y.strides[leading + 1 + d],        band << (ndim - 1 - d)};
  // Without the first band, the others are where they would be after it.
  p.y = static_cast<const char*>(y.data) - (a.approximation ? band * size_of(y.dtype) : 0);
  wavelet::Leading<kOperands> dims(y.sizes, leading);
  dims.add(kX, x);
  dims.add(kY, y);
  if (a.approximation) {
    dims.add(kApproximation, *a.approximation);
    p.approximation = a.approximation->data;
    for (int d = 0; d < ndim; ++d) p.approximation_stride[d] = a.approximation->strides[leading + d];
  }
  if (a.scale) p.scale = dims.add_numbers(kScale, *a.scale);
  if (a.threshold) p.threshold = dims.add_numbers(kThreshold, *a.threshold);
  Axis& last = p.axis[ndim - 1];
  if (last.grid == 1) last.y = last.x;  // one coefficient has no stride of its own
  // The CPU copies coefficients that it has to change, element by element.
  const bool as_they_are = !a.approximation && !a.scale && !a.threshold;
  p.group = as_they_are ? dims.innermost(last.y, last.x, kY, kX) : 1;
  const bool first_has_rows = !a.approximation || p.approximation_stride[ndim - 1] == 1;
  p.y_rows = last.y == p.group && first_has_rows && !a.scale && !a.threshold;
  p.x_rows = last.x == p.group || last.size == 1;
  p.planes = dims.planes();
  return p;
}

int64_t Params::numel() const {
  int64_t n = planes.count * group;
  for (int d = 0; d < ndim; ++d) n *= axis[d].size;
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

}  // namespace fastdiff::idwt
