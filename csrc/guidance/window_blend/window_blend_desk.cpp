// SPDX-License-Identifier: Apache-2.0
// The front desk of window_blend: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "guidance/window_blend/window_blend.h"

namespace fastdiff::window_blend {
namespace {

constexpr const char* kOp = "window_blend";
constexpr int kRowsAndColumns = 2;  // the last dimensions
constexpr int64_t kMaxSide = int64_t{1}
                             << 31;  // pixels: coordinates and their differences stay far from overflow

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_weights(const TensorView& weights, const TensorView& views) {
  if (weights.device != views.device)
    refuse("weights must be on ", device_text(views.device), " like views, got ",
           device_text(weights.device));
  if (!is_real_float(weights.dtype))
    refuse("weights must be float32, float16, bfloat16 or float64, got ", name(weights.dtype));
  const int64_t count = views.size(0), h = views.size(-2), w = views.size(-1);
  const bool fits = (weights.rank == 1 && weights.sizes[0] == count) ||
                    ((weights.rank == 2 || (weights.rank == 3 && weights.sizes[0] == count)) &&
                     weights.size(-2) == h && weights.size(-1) == w);
  if (!fits)
    refuse("weights must have shape ", list_text(std::array{count}), ", ", list_text(std::array{h, w}),
           " or ", list_text(std::array{count, h, w}), ", got ", shape_text(weights));
}

void check_result(const Arguments& a, const Shape& shape, const TensorView& result) {
  if (result.dtype != a.views.dtype)
    refuse("out must be ", name(a.views.dtype), " like views, got ", name(result.dtype));
  if (result.rank != shape.rank || !std::equal(shape.size, shape.size + shape.rank, result.sizes))
    refuse("out must have shape ", list_text({shape.size, static_cast<size_t>(shape.rank)}), ", got ",
           shape_text(result));
  if (result.device != a.views.device)
    refuse("out must be on ", device_text(a.views.device), " like views, got ", device_text(result.device));
  if (!elements_are_distinct(result)) refuse("out must not have elements that share memory (expanded?)");
  if (overlap(result, a.views) != Overlap::none) refuse("out must not share memory with views");
  if (a.weights != nullptr && overlap(result, *a.weights) != Overlap::none)
    refuse("out must not share memory with weights");
}

// The dimensions between the views' and the pixels', of the views (leading = 1) or the result (0).
TensorView planes_of(const TensorView& view, int leading) {
  TensorView planes = view;
  planes.rank = view.rank - leading - kRowsAndColumns;
  planes.sizes += leading;
  planes.strides += leading;
  return planes;
}

// Where the innermost dimension of both is that of the channels, all channels of a pixel are one run.
void group_channels(Params& p) {
  const int64_t channels = p.size[0];
  if (channels == 1 || p.x.plane[0] != 1 || p.y.plane[0] != 1) return;
  if (p.x.column != channels || p.y.column != channels) return;
  p.group = channels;
  p.planes /= channels;
  if (--p.dims == 0) {
    p.dims = p.size[0] = 1;
    return;
  }
  for (int d = 0; d < p.dims; ++d) {
    p.size[d] = p.size[d + 1];
    p.x.plane[d] = p.x.plane[d + 1];
    p.y.plane[d] = p.y.plane[d + 1];
  }
}

Weights weights_of(const TensorView& view) {
  Weights w{view.data, view.dtype};
  if (view.rank != 2) w.view = view.stride(0);
  if (view.rank != 1) {
    w.row = view.stride(-2);
    w.column = view.stride(-1);
  }
  return w;
}

}  // namespace

Arguments arguments_for(const TensorView& result, const TensorView& views, const TensorView* weights) {
  if (result.rank < kRowsAndColumns)
    refuse("out must have at least 2 dimensions [*, H, W], got ", shape_text(result));
  return {views, weights, result.size(-2), result.size(-1)};
}

Shape check(const Arguments& a) {
  const TensorView& views = a.views;
  if (!is_real_float(views.dtype))
    refuse("views must be float32, float16, bfloat16 or float64, got ", name(views.dtype));
  if (views.rank < 1 + kRowsAndColumns)
    refuse("views must have at least 3 dimensions [V, *, h, w], got ", shape_text(views));
  if (views.size(0) < 1 || views.size(-2) < 1 || views.size(-1) < 1)
    refuse("views must be at least one view of at least one pixel, got ", shape_text(views));
  if (a.height < 1 || a.width < 1 || a.height > kMaxSide || a.width > kMaxSide)
    refuse("size must be (H, W), both in 1..2^31, got ", list_text(std::array{a.height, a.width}));
  if (a.weights != nullptr) check_weights(*a.weights, views);
  Shape shape{views.rank - 1, {}};
  std::copy_n(views.sizes + 1, shape.rank, shape.size);
  shape.size[shape.rank - 2] = a.height;
  shape.size[shape.rank - 1] = a.width;
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, const TensorView& result, const int64_t* table,
               int64_t numbers, Tile tile) {
  check_result(a, shape, result);
  Params p;
  p.views = a.views.size(0);
  p.view_height = a.views.size(-2);
  p.view_width = a.views.size(-1);
  p.height = a.height;
  p.width = a.width;
  p.dtype = a.views.dtype;
  p.x = {a.views.data, a.views.stride(0), a.views.stride(-2), a.views.stride(-1), {}};
  p.y = {result.data, 0, result.stride(-2), result.stride(-1), {}};

  const TensorView from = planes_of(a.views, 1), to = planes_of(result, 0);
  Shape planes{to.rank, {}};
  std::copy_n(to.sizes, to.rank, planes.size);
  Space space(kOp, planes);
  const Space::Strides walks[] = {space.strides(to), space.strides(from)};
  space.order_by(walks[0], false);
  int64_t* const strides[] = {p.y.plane, p.x.plane};
  p.dims = space.merge(walks, p.size, strides);
  p.planes = space.numel();
  group_channels(p);

  if (a.weights != nullptr) {
    p.weighting = a.weights->rank == 1 ? Weighting::per_view : Weighting::per_pixel;
    p.weights = weights_of(*a.weights);
  }

  Table& t = p.table;
  t.tile = tile;
  t.across = (a.width + tile.columns - 1) / tile.columns;
  t.tiles = (a.height + tile.rows - 1) / tile.rows * t.across;
  t.places = (numbers - t.tiles - 1) / kPlaceNumbers;
  t.first = table;
  t.place = table + t.tiles + 1;
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
bool is_capturing(int, void*) {
  return false;
}
void synchronize(int) {}
#endif

}  // namespace fastdiff::window_blend
