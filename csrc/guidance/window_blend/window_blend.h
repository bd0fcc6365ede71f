// SPDX-License-Identifier: Apache-2.0
// window_blend: overlapping views of one image become the image, each pixel the mean of the views over it.
//
//   J(p) = sum_i W_i(p) Phi_i(p) / sum_i W_i(p)     over the views i whose box covers p, in their order
//
// In gather form: the image is cut into tiles, and a table lists the views that touch each tile. A kernel
// walks the list of its tile and takes from each view the pixels that the view covers: every element is read
// once and written once, sums stay in registers or in the first-level cache, and nothing is added atomically.
// A table is built once for a set of boxes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/isa.h"
#include "core/space.h"

namespace fastdiff::window_blend {

inline constexpr int64_t kSerialNumel = 64 * 1024;  // elements read; fewer are not worth a second thread
inline constexpr int kBoxNumbers = 4;               // y0, y1, x0, x1
inline constexpr int kPlaceNumbers = 3;             // view, y0, x0

struct Arguments {
  TensorView views;                     // [V, *planes, h, w]
  const TensorView* weights = nullptr;  // [V], [h, w] or [V, h, w]; null: all are 1
  int64_t height = 0, width = 0;        // of the image
};

// The boxes of the views as their caller has them.
struct Boxes {
  std::span<const int64_t> numbers;  // [V, kBoxNumbers]
  bool circular = false;             // boxes wrap around in x
};

struct Tile {
  int64_t rows, columns;
};

// On the CPU a tile is what a block of sums holds; on CUDA, as wide as a warp: its threads share their list.
constexpr Tile tile_of(DeviceType device) {
  return device == DeviceType::cuda ? Tile{8, 32} : Tile{8, 256};
}

// A table is one array of int64: where the list of each tile begins, [tiles + 1], and then the lists,
// [n, kPlaceNumbers], ordered by view within a tile. x0 may be negative: a view that wraps is listed twice.
struct Table {
  Tile tile;
  int64_t across = 0;              // tiles side by side
  int64_t tiles = 0;               // in all
  int64_t places = 0;              // n
  const int64_t* first = nullptr;  // [tiles + 1]
  const int64_t* place = nullptr;  // [n, kPlaceNumbers]
};

// Strides in elements.
struct Image {
  void* data = nullptr;
  int64_t view = 0, row = 0, column = 0;
  int64_t plane[kMaxDims] = {};  // innermost first
};

enum class Weighting : int8_t { none, per_view, per_pixel };

struct Weights {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t view = 0, row = 0, column = 0;  // strides
};

struct Params {
  int64_t views = 0, view_height = 0, view_width = 0;
  int64_t height = 0, width = 0;
  int64_t group =
      1;  // elements side by side in memory that are one pixel: the channels, if they are innermost
  int64_t planes = 1;  // images of such pixels
  int dims = 0;
  int64_t size[kMaxDims] = {};  // innermost first; their product is planes
  DType dtype = DType::f32;
  Image x, y;  // y.view is unused
  Weighting weighting = Weighting::none;
  Weights weights;
  Table table;

  int64_t units() const { return table.tiles * planes; }
  int64_t numel_read() const { return views * planes * view_height * view_width * group; }
};

// With the size of a result that is there already. Throws Refusal.
Arguments arguments_for(const TensorView& result, const TensorView& views, const TensorView* weights);

// The shape of the result, after all checks but those of boxes and result. Throws Refusal.
Shape check(const Arguments& arguments);

// Throws Refusal: a box that is not of the views' size or leaves the image, a pixel in no box.
std::vector<int64_t> make_table(const Arguments& arguments, const Boxes& boxes, Tile tile);

// Throws Refusal. Reads the contents for the kernels of the CPU only; those of CUDA check what they read.
void check_table(const Arguments& arguments, const TensorView& table, DeviceType kernels);

// Checks the result and lays out the launch. table: [numbers] of make_table, on the device. Throws Refusal.
Params prepare(const Arguments& arguments, const Shape& shape, const TensorView& result, const int64_t* table,
               int64_t numbers, Tile tile);

template <Isa>
struct Cpu {
  // Units [begin, end) of Params::units(): the planes of a tile, one tile after the other.
  static void run(const Params& params, int64_t begin, int64_t end);
};

void launch_cuda(const Params& params, int device, void* stream);

// Whether launches on this stream go into a CUDA graph.
bool is_capturing(int device, void* stream);
void synchronize(int device);

}  // namespace fastdiff::window_blend
