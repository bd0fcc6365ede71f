// SPDX-License-Identifier: Apache-2.0
// The front desk of int8_conv2d: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "core/layout.h"
#include "quant/int8_conv2d/int8_conv2d.h"

namespace fastdiff::int8_conv2d {
namespace {

using namespace quant;

constexpr const char* kOp = "int8_conv2d";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

// ---- sizes ------------------------------------------------------------------------------------------

void read_pair(const char* argument, const std::vector<int64_t>& pair, int64_t least, int64_t (&to)[2]) {
  if (pair.size() != 2 || pair[0] < least || pair[1] < least || pair[0] > kMaxInner || pair[1] > kMaxInner)
    refuse(argument, " must be 2 numbers within ", least, " and ", kMaxInner, ", got ", list_text(pair));
  to[0] = pair[0], to[1] = pair[1];
}

Image image_of(const Arguments& a) {
  const TensorView& x = a.x;
  if (x.rank != 4 || x.sizes[1] < 1 || x.sizes[2] < 1 || x.sizes[3] < 1)
    refuse("x must have shape [B, C, H, W] with C, H and W of at least 1, got ", shape_text(x));
  Image image;
  image.batch = x.sizes[0];
  image.channels = x.sizes[1];
  read_pair("kernel", a.kernel, 1, image.kernel);
  read_pair("stride", a.stride, 1, image.stride);
  read_pair("padding", a.padding, 0, image.padding);
  read_pair("dilation", a.dilation, 1, image.dilation);
  for (int d = 0; d < 2; ++d) {
    image.size[d] = x.sizes[2 + d];
    image.padded[d] = image.size[d] + 2 * image.padding[d];
    const int64_t reach = image.dilation[d] * (image.kernel[d] - 1) + 1;
    if (reach > image.padded[d])
      refuse("the kernel reaches over ", reach, d == 0 ? " rows" : " columns",
             ", more than x has with its padding: ", image.padded[d]);
    image.out[d] = (image.padded[d] - reach) / image.stride[d] + 1;
  }
  if (image.channels > kMaxInner || image.inner() > kMaxInner)
    refuse("a kernel must have at most ", kMaxInner, " elements, got ", image.inner());
  return image;
}

// x as the rows of the product see it, which the epilogue knows: [B, OH, OW, K], of which only the sizes
// count.
class RowsOfProduct {
 public:
  RowsOfProduct(const TensorView& x, const Image& image)
      : sizes_{image.batch, image.out[0], image.out[1], image.inner()},
        view_{x.data, x.dtype, 4, sizes_, kNoStrides, x.device} {}
  RowsOfProduct(const RowsOfProduct&) = delete;
  RowsOfProduct& operator=(const RowsOfProduct&) = delete;

  const TensorView& view() const { return view_; }

 private:
  static constexpr int64_t kNoStrides[4] = {};
  int64_t sizes_[4];
  TensorView view_;
};

// [B, N, OH, OW] as [B, OH, OW, N].
class ChannelsLast {
 public:
  explicit ChannelsLast(const TensorView& t) : view_(t) {
    for (int d = 0; d < 4; ++d) sizes_[d] = t.sizes[kOrder[d]], strides_[d] = t.strides[kOrder[d]];
    view_.sizes = sizes_, view_.strides = strides_;
  }
  ChannelsLast(const ChannelsLast&) = delete;
  ChannelsLast& operator=(const ChannelsLast&) = delete;

  const TensorView& view() const { return view_; }

 private:
  static constexpr int kOrder[4] = {0, 2, 3, 1};
  int64_t sizes_[4], strides_[4];
  TensorView view_;
};

// ---- checks -----------------------------------------------------------------------------------------

void check_for_samples(const char* argument, const TensorView& t, DType dtype, const TensorView& x) {
  check_device(kOp, argument, t, x);
  if (t.dtype != dtype) refuse(argument, " must be ", name(dtype), ", got ", name(t.dtype));
  if (t.rank != 1 || (t.sizes[0] != 1 && t.sizes[0] != x.sizes[0]))
    refuse(argument, " must have 1 element or one for each of the ", x.sizes[0], " samples of x, got shape ",
           shape_text(t));
}

void check_activations(const Arguments& a) {
  const TensorView& x = a.x;
  if (x.dtype != DType::i8) check_float(kOp, "x", x, x);
  if (a.bits != 7 && a.bits != 8) refuse("bits must be 7 or 8, got ", a.bits);
  if (x.dtype == DType::i8 && !a.x_scale) refuse("x_scale must be given for x of int8");
  if (a.x_zero_point && !a.x_scale) refuse("x_zero_point needs x_scale");
  if (a.x_scale) check_for_samples("x_scale", *a.x_scale, DType::f32, x);
  if (a.x_zero_point) check_for_samples("x_zero_point", *a.x_zero_point, DType::i32, x);
}

std::array<int64_t, 4> shape_of(const Arguments& a, const Image& image) {
  return {image.batch, a.epilogue.gated ? a.columns / 2 : a.columns, image.out[0], image.out[1]};
}

void check_shape(const char* argument, const TensorView& t, const std::array<int64_t, 4>& shape) {
  if (t.rank != 4 || !std::equal(shape.begin(), shape.end(), t.sizes))
    refuse(argument, " must have shape ", list_text(shape), ", got ", shape_text(t));
}

}  // namespace

std::array<int64_t, 4> check(const Arguments& a) {
  const Image image = image_of(a);
  check_activations(a);
  if (a.columns < 1) refuse("columns must be positive, got ", a.columns);
  const std::array<int64_t, 4> shape = shape_of(a, image);
  if (a.epilogue.residual) check_shape("residual", *a.epilogue.residual, shape);
  EpilogueArguments rest = a.epilogue;
  rest.residual.reset();
  check_epilogue(kOp, rest, RowsOfProduct(a.x, image).view(), a.columns);
  if (a.epilogue.residual) check_float(kOp, "residual", *a.epilogue.residual, a.x);
  const int64_t slots = slots_of(a.columns, a.epilogue.gated);
  check_packed(kOp, "weight", a.weight, DType::i8, slots * round_up(image.inner(), kPiece), a.x);
  check_packed(kOp, "scale", a.scale, DType::f32, slots, a.x);
  check_packed(kOp, "column_sum", a.column_sum, DType::i32, slots, a.x);
  if (a.zero_point) check_packed(kOp, "zero_point", *a.zero_point, DType::i32, slots, a.x);
  return shape;
}

// ---- the launch -------------------------------------------------------------------------------------

namespace {

// A sample of x with the dimension of the smallest stride first, neighbours merged.
Walk walk_of(const TensorView& x) {
  int order[3] = {3, 2, 1};
  std::stable_sort(order, order + 3, [&x](int a, int b) { return x.strides[a] < x.strides[b]; });
  Walk walk;
  walk.sample_stride = x.strides[0];
  walk.dims = 1;
  walk.size[0] = 1;
  for (const int d : order) {
    if (x.sizes[d] == 1) continue;
    const int64_t last = walk.dims - 1;
    if (walk.size[last] == 1) {
      walk.size[last] = x.sizes[d], walk.stride[last] = x.strides[d];
    } else if (x.strides[d] == walk.size[last] * walk.stride[last]) {
      walk.size[last] *= x.sizes[d];
    } else {
      walk.size[last + 1] = x.sizes[d], walk.stride[last + 1] = x.strides[d];
      ++walk.dims;
    }
  }
  return walk;
}

}  // namespace

Params prepare(const Arguments& a, const TensorView& y) {
  Params p;
  p.image = image_of(a);
  check_shape("out", y, shape_of(a, p.image));
  if (overlap(y, a.x) != Overlap::none) refuse("out must not share memory with x");
  const RowsOfProduct rows(a.x, p.image);
  const ChannelsLast result(y), residual(a.epilogue.residual.value_or(y));
  EpilogueArguments epilogue = a.epilogue;
  if (epilogue.residual) epilogue.residual = residual.view();
  p.epilogue = epilogue_of(epilogue, rows.view(), a.columns);
  set_result(kOp, epilogue, rows.view(), result.view(),
             {{"x_scale", a.x_scale},
              {"x_zero_point", a.x_zero_point},
              {"weight", a.weight},
              {"scale", a.scale},
              {"column_sum", a.column_sum},
              {"zero_point", a.zero_point}},
             p.epilogue);
  p.epilogue.scale = static_cast<const float*>(a.scale.data);
  p.x = a.x.data;
  p.dtype = a.x.dtype;
  std::copy_n(a.x.strides, 4, p.strides);
  p.walk = walk_of(a.x);
  p.x_scale = vectors_of(a.x_scale);
  p.x_zero_point = vectors_of(a.x_zero_point);
  p.weight = static_cast<const int8_t*>(a.weight.data);
  p.column_sum = static_cast<const int32_t*>(a.column_sum.data);
  if (a.zero_point) p.zero_point = static_cast<const int32_t*>(a.zero_point->data);
  p.pieces = round_up(p.image.inner(), kPiece) / kPiece;
  p.is_int8 = a.x.dtype == DType::i8;
  p.is_signed = p.is_int8 || a.bits == 8;
  return p;
}

Shares shares_of(const Params& p, const Team& team) {
  constexpr int64_t kBlockBytes = 1 << 20;  // half of a second-level cache
  constexpr int64_t kUnit = 32;             // rows that are multiplied together
  const int64_t units = (p.epilogue.rows + kUnit - 1) / kUnit, pairs = (p.epilogue.slots + 31) / 32;
  Shares s;
  s.rows = std::clamp<int64_t>(team.threads, 1, std::max<int64_t>(1, units));
  s.runs = std::clamp<int64_t>(team.threads / s.rows, 1, pairs);
  const int64_t rows = (units + s.rows - 1) / s.rows * kUnit;
  s.block = std::min(rows, std::max(kUnit, kBlockBytes / (p.pieces * kPiece) / kUnit * kUnit));
  return s;
}

int64_t parts_of_range(const Params& p) {
  constexpr int64_t kElements = 16384, kMost = 64;
  return std::clamp<int64_t>(p.image.channels * p.image.size[0] * p.image.size[1] / kElements, 1, kMost);
}

namespace {

void place_image(Params& p, Cut& cut) {
  place(p.epilogue, cut);
  p.bytes = cut.take<uint8_t>(p.image.bytes());
  p.scales = cut.take<RowScale>(p.image.batch);
  p.ranges = cut.take<float>(p.image.batch * parts_of_range(p) * 2);
}

}  // namespace

int64_t place_cpu(Params& p, const Team& team, void* scratch) {
  Cut cut(scratch);
  place_image(p, cut);
  p.broken = cut.take<int32_t>(p.image.batch * p.image.size[0]);
  p.row_scale = cut.take<float>(p.epilogue.rows);
  p.row_zero = cut.take<int32_t>(p.epilogue.rows);
  p.row_sum = cut.take<int32_t>(p.epilogue.rows);
  p.starts = cut.take<int64_t>(p.image.kernel[0] * p.image.runs());
  const Shares s = shares_of(p, team);
  p.rows = cut.take<uint8_t>(s.rows * s.runs * s.block * p.pieces * kPiece);
  return cut.bytes();
}

int64_t place_cuda(Params& p, void* scratch) {
  Cut cut(scratch);
  place_image(p, cut);
  p.broken = cut.take<int32_t>(p.image.batch);
  p.row_sum = cut.take<int32_t>(p.epilogue.rows);
  return cut.bytes();
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::int8_conv2d
