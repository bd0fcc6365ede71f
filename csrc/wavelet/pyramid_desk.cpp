// SPDX-License-Identifier: Apache-2.0
#include "wavelet/pyramid.h"

#include <algorithm>
#include <array>

#include "core/space.h"

namespace fastdiff::pyramid {
namespace {

constexpr int kRowsAndColumns = 2;  // the last dimensions

TensorView planes_of(const TensorView& view) {
  TensorView planes = view;
  planes.rank -= kRowsAndColumns;
  return planes;
}

Image image_of(const TensorView& view) {
  return {view.data, view.dtype, view.stride(-2), view.stride(-1), {}};
}

}  // namespace

Pyramid lay_out(const char* op, const TensorView& whole, std::span<const TensorView> bands) {
  Pyramid p;
  p.levels = static_cast<int>(bands.size()) - 1;
  p.wide = whole.dtype == DType::f64;

  // The planes of all tensors in one order, that of whole.
  const TensorView planes = planes_of(whole);
  Shape shape{planes.rank, {}};
  std::copy_n(planes.sizes, planes.rank, shape.size);
  Space space(op, shape);
  std::array<Image, kMaxLevels + 1> images;
  std::array<Space::Strides, kMaxLevels + 1> walks;
  std::array<int64_t*, kMaxLevels + 1> strides;
  for (size_t n = 0; n <= bands.size(); ++n) {
    const TensorView& view = n == 0 ? whole : bands[n - 1];
    images[n] = image_of(view);
    walks[n] = space.strides(planes_of(view));
    strides[n] = images[n].plane;
  }
  space.order_by(walks[0], false);
  Level& finest = p.level[0];
  finest.dims =
      space.merge({walks.data(), bands.size() + 1}, finest.size, {strides.data(), bands.size() + 1});
  p.planes = space.numel();

  int64_t height = whole.size(-2), width = whole.size(-1);
  Image above = images[0];
  for (int n = 0; n < p.levels; ++n) {
    Level& level = p.level[n];
    level.dims = finest.dims;
    std::copy_n(finest.size, finest.dims, level.size);
    level.height = height;
    level.width = width;
    level.whole = above;
    level.detail = images[n + 1];
    height = coarse_size(height), width = coarse_size(width);
    if (n + 1 == p.levels) {
      level.coarse = images[n + 2];
      break;
    }
    level.coarse = {nullptr, p.wide ? DType::f64 : DType::f32, width, 1, {}};
    int64_t stride = height * width;
    for (int d = 0; d < level.dims; ++d) {
      level.coarse.plane[d] = stride;
      stride *= level.size[d];
    }
    p.scratch_bytes += p.planes * height * width * size_of(level.coarse.dtype);
    above = level.coarse;
  }
  return p;
}

void Pyramid::put_between(void* scratch) {
  auto* next = static_cast<char*>(scratch);
  for (int n = 0; n + 1 < levels; ++n) {
    Level &above = level[n], &below = level[n + 1];
    above.coarse.data = below.whole.data = next;
    next += planes * below.height * below.width * size_of(below.whole.dtype);
  }
}

}  // namespace fastdiff::pyramid
