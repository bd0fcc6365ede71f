// SPDX-License-Identifier: Apache-2.0
// The boxes of window_blend: their checks, and the table that lists the views over each tile.
#include <algorithm>
#include <array>
#include <string>

#include "guidance/window_blend/window_blend.h"

namespace fastdiff::window_blend {
namespace {

constexpr const char* kOp = "window_blend";
constexpr int kNamedPixels = 3;  // in the message about pixels that no view covers

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

// A view on the image, unrolled: one that wraps around has two places, the second with x0 < 0.
struct Place {
  int64_t view, y, x;
};

// Without overflow, whatever the numbers are.
bool spans(int64_t begin, int64_t end, int64_t length) {
  return static_cast<uint64_t>(end) - static_cast<uint64_t>(begin) == static_cast<uint64_t>(length);
}

bool is_inside(int64_t begin, int64_t end, int64_t length) {
  return 0 <= begin && begin <= end && end <= length;
}

std::vector<Place> places_of(const Arguments& a, const Boxes& boxes) {
  const int64_t count = a.views.size(0), h = a.views.size(-2), w = a.views.size(-1);
  if (static_cast<int64_t>(boxes.numbers.size()) != count * kBoxNumbers)
    refuse("boxes must be one (y0, y1, x0, x1) for each of ", count, " views, got ", boxes.numbers.size(),
           " numbers");
  std::vector<Place> places;
  places.reserve(static_cast<size_t>(count));
  for (int64_t view = 0; view < count; ++view) {
    const std::span<const int64_t> box =
        boxes.numbers.subspan(static_cast<size_t>(view) * kBoxNumbers, kBoxNumbers);
    const Argument argument("boxes", view);
    const int64_t y0 = box[0], y1 = box[1], x0 = box[2], x1 = box[3];
    if (!spans(y0, y1, h) || !spans(x0, x1, w))
      refuse(argument, " must be ", h, " x ", w, " like its view, got ", list_text(box));
    if (!is_inside(y0, y1, a.height) || (!boxes.circular && !is_inside(x0, x1, a.width)))
      refuse(argument, " must be inside the image of ", a.height, " x ", a.width,
             boxes.circular ? " in y" : " (only circular boxes wrap around in x)", ", got ", list_text(box));
    if (w > a.width)
      refuse(argument, " must not be wider than the image of ", a.height, " x ", a.width, ", got ",
             list_text(box));
    const int64_t x = boxes.circular ? (x0 % a.width + a.width) % a.width : x0;
    places.push_back({view, y0, x});
    if (x + w > a.width) places.push_back({view, y0, x - a.width});
  }
  return places;
}

// Refuses pixels in no view. Band by band between the edges in y, where all rows are alike.
void check_coverage(const Arguments& a, const std::vector<Place>& places) {
  const int64_t h = a.views.size(-2), w = a.views.size(-1);
  std::vector<int64_t> edges{0, a.height};
  for (const Place& place : places) edges.insert(edges.end(), {place.y, place.y + h});
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());

  int64_t missing = 0;
  std::string named;
  int named_count = 0;
  std::vector<int64_t> steps(static_cast<size_t>(a.width) + 1);  // by which the number of views changes at x
  for (size_t band = 0; band + 1 < edges.size(); ++band) {
    const int64_t top = edges[band], bottom = edges[band + 1];
    std::fill(steps.begin(), steps.end(), 0);
    for (const Place& place : places) {
      if (top < place.y || top >= place.y + h) continue;
      ++steps[static_cast<size_t>(std::max<int64_t>(place.x, 0))];
      --steps[static_cast<size_t>(std::min(place.x + w, a.width))];
    }
    int64_t covered = 0, missing_columns = 0;
    std::array<int64_t, kNamedPixels> columns{};
    for (int64_t x = 0; x < a.width; ++x) {
      covered += steps[static_cast<size_t>(x)];
      if (covered > 0) continue;
      if (missing_columns < kNamedPixels) columns[static_cast<size_t>(missing_columns)] = x;
      ++missing_columns;
    }
    missing += missing_columns * (bottom - top);
    for (int64_t y = top; y < bottom && missing_columns > 0 && named_count < kNamedPixels; ++y)
      for (int64_t n = 0; n < std::min<int64_t>(missing_columns, kNamedPixels) && named_count < kNamedPixels;
           ++n, ++named_count)
        named += (named_count ? ", " : "") + list_text(std::array{y, columns[static_cast<size_t>(n)]});
  }
  if (missing > 0)
    refuse("boxes must cover every pixel of the image of ", a.height, " x ", a.width, ", got none at ",
           missing, missing == 1 ? " pixel" : " pixels", ", (y, x) = ", named,
           missing > named_count ? ", ..." : "");
}

}  // namespace

std::vector<int64_t> make_table(const Arguments& a, const Boxes& boxes, Tile tile) {
  const std::vector<Place> places = places_of(a, boxes);
  check_coverage(a, places);
  const int64_t across = (a.width + tile.columns - 1) / tile.columns;
  const int64_t tiles = (a.height + tile.rows - 1) / tile.rows * across;
  // body(tile) for each tile that a place touches
  const auto each_tile = [&](const Place& place, const auto& body) {
    const int64_t bottom = place.y + a.views.size(-2), right = std::min(place.x + a.views.size(-1), a.width);
    for (int64_t row = place.y / tile.rows; row * tile.rows < bottom; ++row)
      for (int64_t column = std::max<int64_t>(place.x, 0) / tile.columns; column * tile.columns < right;
           ++column)
        body(static_cast<size_t>(row * across + column));
  };
  std::vector<int64_t> table(static_cast<size_t>(tiles) + 1);
  for (const Place& place : places) each_tile(place, [&](size_t t) { ++table[t + 1]; });
  for (size_t t = 0; t < static_cast<size_t>(tiles); ++t) table[t + 1] += table[t];

  std::vector<int64_t> next(table.begin(), table.end() - 1);
  table.resize(table.size() + static_cast<size_t>(table.back()) * kPlaceNumbers);
  int64_t* const lists = table.data() + tiles + 1;
  for (const Place& place : places)
    each_tile(place, [&](size_t t) {
      const int64_t entry[kPlaceNumbers] = {place.view, place.y, place.x};
      std::copy_n(entry, kPlaceNumbers, lists + kPlaceNumbers * next[t]++);
    });
  return table;
}

void check_table(const Arguments& a, const TensorView& table, DeviceType kernels) {
  const Tile tile = tile_of(kernels);
  const int64_t across = (a.width + tile.columns - 1) / tile.columns;
  const int64_t tiles = (a.height + tile.rows - 1) / tile.rows * across;
  if (table.device != a.views.device)
    refuse("table must be on ", device_text(a.views.device), " like views, got ", device_text(table.device));
  if (table.dtype != DType::i64) refuse("table must be int64, got ", name(table.dtype));
  const int64_t numbers = table.numel() - tiles - 1;
  if (table.rank != 1 || (table.sizes[0] > 1 && table.strides[0] != 1) || numbers < 0 ||
      numbers % kPlaceNumbers != 0)
    refuse("table must be the contiguous numbers of window_blend_table for this image, got ",
           shape_text(table));
  if (kernels != DeviceType::cpu) return;
  const auto* first = static_cast<const int64_t*>(table.data);
  const int64_t* place = first + tiles + 1;
  bool right = first[0] == 0 && first[tiles] == numbers / kPlaceNumbers;
  for (int64_t t = 0; t < tiles; ++t) right &= first[t] <= first[t + 1];
  const auto touches = [](int64_t begin, int64_t length, int64_t side) {
    return -length < begin && begin < side;
  };
  for (int64_t n = 0; n < numbers / kPlaceNumbers; ++n, place += kPlaceNumbers)
    right &= 0 <= place[0] && place[0] < a.views.size(0) && touches(place[1], a.views.size(-2), a.height) &&
             touches(place[2], a.views.size(-1), a.width);
  if (!right)
    refuse("table must be one of window_blend_table for these views, got one that points elsewhere");
}

}  // namespace fastdiff::window_blend
