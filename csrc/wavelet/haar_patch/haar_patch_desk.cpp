// SPDX-License-Identifier: Apache-2.0
// The front desk of haar_patch: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/cache.h"
#include "core/layout.h"
#include "wavelet/haar_patch/haar_patch.h"

namespace fastdiff::haar_patch {
namespace {

constexpr const char* kOp = "haar_patch";
constexpr int kQuad = 4;
// Of the last-level cache, what video and bands may fill before they are written past it. Measured, with the
// result read by copy_ afterwards: even at a third, at 29 of 32 MB 1.5 times as fast.
constexpr int64_t kCacheShare = 3;

enum Dim { kBatch, kChannel, kFrame, kRow, kColumn };

constexpr int kRowMajor[] = {kColumn, kRow, kFrame, kChannel, kBatch};  // innermost first
constexpr int kChannelsLast[] = {kChannel, kColumn, kRow, kFrame, kBatch};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_video(const TensorView& x, int64_t patch) {
  if (x.sizes[kFrame] < 1 || (x.sizes[kFrame] - 1) % patch != 0)
    refuse("x must have 1 + a multiple of ", patch, " frames (dimension 2 of [B, C, T, H, W]), got ",
           shape_text(x));
  if (x.sizes[kRow] % patch != 0)
    refuse("x must have a multiple of ", patch, " rows (dimension 3 of [B, C, T, H, W]), got ",
           shape_text(x));
  if (x.sizes[kColumn] % patch != 0)
    refuse("x must have a multiple of ", patch, " columns (dimension 4 of [B, C, T, H, W]), got ",
           shape_text(x));
}

void check_bands(const TensorView& x, int64_t patch) {
  const int64_t bands = patch * patch * patch;
  if (x.sizes[kChannel] % bands != 0)
    refuse("x must have a multiple of patch^3 = ", bands, " channels (dimension 1 of [B, C p^3, T, H, W]), ",
           "got ", shape_text(x));
  if (x.sizes[kFrame] < 1)
    refuse("x must have at least 1 frame (dimension 2 of [B, C p^3, T, H, W]), got ", shape_text(x));
}

void check_result(const Arguments& a, const Shape& shape, const TensorView& y) {
  if (y.dtype != a.x.dtype) refuse("out must be ", name(a.x.dtype), " like x, got ", name(y.dtype));
  if (y.rank != shape.rank || !std::equal(shape.size, shape.size + shape.rank, y.sizes))
    refuse("out must have shape ", shape_text({nullptr, y.dtype, shape.rank, shape.size, nullptr, y.device}),
           ", got ", shape_text(y));
  if (y.device != a.x.device)
    refuse("out must be on ", device_text(a.x.device), " like x, got ", device_text(y.device));
  if (!elements_are_distinct(y)) refuse("out must not have elements that share memory (expanded?)");
  if (overlap(y, a.x) != Overlap::none) refuse("out must not share memory with x");
}

// Whether the dimensions lie in memory in this order, without gaps.
bool lies_as(const TensorView& x, const int (&order)[kRank]) {
  int64_t step = 1;
  for (const int d : order) {
    if (x.sizes[d] == 1) continue;
    if (x.strides[d] != step) return false;
    step *= x.sizes[d];
  }
  return true;
}

// A dimension of one element is never walked.
int64_t stride_of(const TensorView& t, int dim) {
  return t.sizes[dim] == 1 ? 0 : t.strides[dim];
}

Side side_of(const TensorView& t) {
  // One column is a run of one: unit stride is as good as any, and the kernels' fast path.
  return {t.data,
          stride_of(t, kBatch),
          stride_of(t, kChannel),
          stride_of(t, kFrame),
          stride_of(t, kRow),
          t.sizes[kColumn] == 1 ? 1 : t.strides[kColumn]};
}

bool has_quads(const Params& p) {
  const Side& v = p.video;
  const auto bytes = static_cast<uintptr_t>(kQuad * size_of(p.dtype));
  return p.patch % kQuad == 0 && p.dtype != DType::f64 && v.column == 1 &&
         reinterpret_cast<uintptr_t>(v.data) % bytes == 0 && v.row % kQuad == 0 && v.frame % kQuad == 0 &&
         v.channel % kQuad == 0 && v.batch % kQuad == 0;
}

}  // namespace

Shape check(const Arguments& a) {
  const TensorView& x = a.x;
  if (!is_real_float(x.dtype)) refuse("x must be float32, float16, bfloat16 or float64, got ", name(x.dtype));
  if (x.rank != kRank) refuse("x must have 5 dimensions [B, C, T, H, W], got ", shape_text(x));
  const int64_t p = a.patch;
  if (p != 1 && p != 2 && p != 4 && p != 8) refuse("patch must be 1, 2, 4 or 8, got ", p);
  const int64_t bands = p * p * p, *size = x.sizes;
  if (a.to_bands()) {
    check_video(x, p);
    return {kRank,
            {size[kBatch], size[kChannel] * bands, (size[kFrame] - 1) / p + 1, size[kRow] / p,
             size[kColumn] / p}};
  }
  check_bands(x, p);
  return {
      kRank,
      {size[kBatch], size[kChannel] / bands, (size[kFrame] - 1) * p + 1, size[kRow] * p, size[kColumn] * p}};
}

void result_strides(const Arguments& a, const Shape& shape, int64_t* strides) {
  const bool last = a.x.numel() != 0 && !lies_as(a.x, kRowMajor) && lies_as(a.x, kChannelsLast);
  int64_t step = 1;
  for (const int d : last ? kChannelsLast : kRowMajor) {
    strides[d] = step;
    step *= std::max<int64_t>(1, shape.size[d]);
  }
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& result) {
  check_result(a, shape, result);
  Params p;
  p.to_bands = a.to_bands();
  const TensorView& video = p.to_bands ? a.x : result;
  const TensorView& bands = p.to_bands ? result : a.x;
  p.batch = video.sizes[kBatch];
  p.channels = video.sizes[kChannel];
  p.frames = bands.sizes[kFrame];
  p.rows = bands.sizes[kRow];
  p.columns = bands.sizes[kColumn];
  p.patch = static_cast<int>(a.patch);
  p.dtype = a.x.dtype;
  p.whole_first = !a.inverse;
  p.scale = a.inverse ? 1.0 : 1.0 / static_cast<double>(a.patch * a.patch * a.patch);
  p.stream = (video.numel() + bands.numel()) * size_of(p.dtype) > last_level_cache_bytes() / kCacheShare;
  p.video = side_of(video);
  p.bands = side_of(bands);
  p.quads = has_quads(p);
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::haar_patch
