// SPDX-License-Identifier: Apache-2.0
// The front desk of laplacian_merge: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "wavelet/laplacian_merge/laplacian_merge.h"

namespace fastdiff::laplacian_merge {
namespace {

constexpr const char* kOp = "laplacian_merge";
constexpr int kRowsAndColumns = 2;  // the last dimensions

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_band(const TensorView& band, const Argument& argument, const TensorView& first) {
  if (band.dtype != first.dtype)
    refuse(argument, " must be ", name(first.dtype), " like bands[0], got ", name(band.dtype));
  if (band.device != first.device)
    refuse(argument, " must be on ", device_text(first.device), " like bands[0], got ",
           device_text(band.device));
}

void check_sizes(const TensorView& band, const Argument& argument, const TensorView& finer) {
  int64_t size[kMaxRank];
  std::copy_n(finer.sizes, finer.rank, size);
  for (int d = finer.rank - kRowsAndColumns; d < finer.rank; ++d) size[d] = pyramid::coarse_size(size[d]);
  if (band.rank != finer.rank || !std::equal(size, size + finer.rank, band.sizes))
    refuse(argument, " must have shape ", shape_text({.rank = finer.rank, .sizes = size, .device = {}}),
           ", half of the band before it, got ", shape_text(band));
}

}  // namespace

Shape check(const Arguments& a) {
  const int64_t count = static_cast<int64_t>(a.bands.size());
  if (count < 2 || count > pyramid::kMaxLevels)
    refuse("bands must be 2..", pyramid::kMaxLevels, " tensors, got ", count);
  const TensorView& first = a.bands[0];
  if (!is_real_float(first.dtype))
    refuse("bands must be float32, float16, bfloat16 or float64, got ", name(first.dtype));
  if (first.rank < kRowsAndColumns)
    refuse("bands must have at least 2 dimensions [*, H, W], got ", shape_text(first));
  if (std::min(first.size(-2), first.size(-1)) < 1 ||
      std::max(first.size(-2), first.size(-1)) > pyramid::kMaxSide)
    refuse("bands must have sides of 1..2^30 pixels, got ", shape_text(first));
  for (int64_t n = 1; n < count; ++n) {
    const TensorView& band = a.bands[static_cast<size_t>(n)];
    check_band(band, {"bands", n}, first);
    check_sizes(band, {"bands", n}, a.bands[static_cast<size_t>(n - 1)]);
  }
  Shape shape{first.rank, {}};
  std::copy_n(first.sizes, first.rank, shape.size);
  return shape;
}

Params prepare(const Arguments& a, const TensorView& result) {
  const TensorView& first = a.bands[0];
  if (result.dtype != first.dtype)
    refuse("out must be ", name(first.dtype), " like bands, got ", name(result.dtype));
  if (result.rank != first.rank || !std::equal(first.sizes, first.sizes + first.rank, result.sizes))
    refuse("out must have shape ", shape_text(first), ", got ", shape_text(result));
  if (result.device != first.device)
    refuse("out must be on ", device_text(first.device), " like bands, got ", device_text(result.device));
  if (!elements_are_distinct(result)) refuse("out must not have elements that share memory (expanded?)");
  if (overlap(result, first) == Overlap::partial)
    refuse("out must be exactly bands[0] or not share memory with it, got a partial overlap");
  for (size_t n = 1; n < a.bands.size(); ++n)
    if (overlap(result, a.bands[n]) != Overlap::none)
      refuse("out must not share memory with ", Argument("bands", static_cast<int64_t>(n)).text());
  return pyramid::lay_out(kOp, result, a.bands);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::laplacian_merge
