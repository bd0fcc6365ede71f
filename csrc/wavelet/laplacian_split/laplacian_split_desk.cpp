// SPDX-License-Identifier: Apache-2.0
// The front desk of laplacian_split: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "wavelet/laplacian_split/laplacian_split.h"

namespace fastdiff::laplacian_split {
namespace {

constexpr const char* kOp = "laplacian_split";
constexpr int kRowsAndColumns = 2;  // the last dimensions

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_result(const TensorView& x, const Bands& bands, int band, std::span<const TensorView> results) {
  const TensorView& y = results[static_cast<size_t>(band)];
  const Argument out("out", band);
  if (y.dtype != x.dtype) refuse(out, " must be ", name(x.dtype), " like x, got ", name(y.dtype));
  const std::span<const int64_t> shape = bands.shape(band);
  if (y.rank != bands.rank || !std::equal(shape.begin(), shape.end(), y.sizes))
    refuse(out, " must have shape ", shape_text({.rank = bands.rank, .sizes = shape.data(), .device = {}}),
           ", got ", shape_text(y));
  if (y.device != x.device)
    refuse(out, " must be on ", device_text(x.device), " like x, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse(out, " must not have elements that share memory (expanded?)");
  if (overlap(y, x) != Overlap::none)
    refuse("out must not share memory with x, got ", out.text(), " that does");
  for (int other = 0; other < band; ++other)
    if (overlap(y, results[static_cast<size_t>(other)]) != Overlap::none)
      refuse(out, " must not share memory with the other results, got overlap with ", Argument("out", other));
}

}  // namespace

Bands check(const Arguments& a) {
  const TensorView& x = a.x;
  if (!is_real_float(x.dtype)) refuse("x must be float32, float16, bfloat16 or float64, got ", name(x.dtype));
  if (x.rank < kRowsAndColumns) refuse("x must have at least 2 dimensions [*, H, W], got ", shape_text(x));
  if (std::min(x.size(-2), x.size(-1)) < 1 || std::max(x.size(-2), x.size(-1)) > pyramid::kMaxSide)
    refuse("x must have sides of 1..2^30 pixels, got ", shape_text(x));
  if (a.levels < 2 || a.levels > pyramid::kMaxLevels)
    refuse("levels must be in 2..", pyramid::kMaxLevels, ", got ", a.levels);
  Bands bands{static_cast<int>(a.levels), x.rank, {}};
  std::copy_n(x.sizes, x.rank, bands.size[0]);
  for (int band = 1; band < bands.count; ++band) {
    std::copy_n(bands.size[band - 1], x.rank, bands.size[band]);
    for (int d = x.rank - kRowsAndColumns; d < x.rank; ++d)
      bands.size[band][d] = pyramid::coarse_size(bands.size[band - 1][d]);
  }
  return bands;
}

Params prepare(const Arguments& a, const Bands& bands, std::span<const TensorView> results) {
  if (results.size() != static_cast<size_t>(bands.count))
    refuse("out must be ", bands.count, " tensors, one for each band, got ", results.size());
  for (int band = 0; band < bands.count; ++band) check_result(a.x, bands, band, results);
  return pyramid::lay_out(kOp, a.x, results);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::laplacian_split
