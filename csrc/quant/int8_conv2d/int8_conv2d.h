// SPDX-License-Identifier: Apache-2.0
// int8_conv2d: convolutions of int8 with exact sums, as a product of matrices that is never stored whole.
//
//   sum[b, n, i, j] = sum over (u, v, c) of (q[b, c, i s + u d - p, j s + v d - p] - zx[b]) (w[n, u, v, c] -
//   zw[n]) y               = epilogue(sx[b] sum), quant/epilogue.h, whose scale is sw[n]
//
// x becomes bytes once, with its channels last and its padding around it: the byte of 0. A pixel of the
// result is then a row of K = kh kw C bytes, of which kw C lie together if v has no gaps. Sums are exact for
// K <= 33024.
//
// Floor, per thread of a CPU of 3 GHz: 2 B OH OW N K / (64 operations a cycle with vpmaddubsw and AVX2, 256
// with VNNI and AVX-512, 2048 with AMX). Besides: x is read twice (once for its range), B OH OW K bytes are
// copied within the second-level cache, but for tiles of AMX that can read them where they lie.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/isa.h"
#include "core/team.h"
#include "core/walk.h"
#include "quant/epilogue.h"
#include "quant/int8_rows.h"

namespace fastdiff::int8_conv2d {

inline constexpr int64_t kMaxInner = 33024;  // a multiple of 64 below 2^31 / 255^2

struct Arguments {
  TensorView x;                            // [B, C, H, W], int8 or floating
  std::optional<TensorView> x_scale;       // [1] or [B] float32
  std::optional<TensorView> x_zero_point;  // [1] or [B] int32
  TensorView weight;                       // int8 panels, quant/panels.h; K in the order of (kh, kw, C)
  TensorView scale;                        // sw [slots] float32
  TensorView column_sum;                   // sum_k w [slots] int32
  std::optional<TensorView> zero_point;    // zw [slots] int32
  quant::EpilogueArguments epilogue;       // gate [outputs] or [B|1, outputs], residual [B, outputs, OH, OW]
  int64_t columns = 0;                     // N
  int64_t bits = 8;                        // of quantised activations: 8, or 7 without a sign
  std::vector<int64_t> kernel, stride, padding, dilation;  // of rows and columns
};

// Sizes by dimension: [0] of rows, [1] of columns.
struct Image {
  int64_t batch = 0, channels = 0;
  int64_t size[2] = {}, kernel[2] = {}, stride[2] = {}, padding[2] = {}, dilation[2] = {};
  int64_t padded[2] = {}, out[2] = {};  // H + 2 p; of the result

  constexpr int64_t inner() const { return kernel[0] * kernel[1] * channels; }
  constexpr int64_t row() const { return padded[1] * channels; }  // bytes of a padded row
  constexpr int64_t bytes() const { return batch * padded[0] * row(); }
  // Taps whose bytes lie together, and how many such runs a row of the kernel has.
  constexpr int64_t run() const { return dilation[1] == 1 ? kernel[1] * channels : channels; }
  constexpr int64_t runs() const { return dilation[1] == 1 ? 1 : kernel[1]; }
  // Where the pixels begin that row m of the product is made of.
  FASTDIFF_HD int64_t at(int64_t m) const {
    const int64_t column = m % out[1], line = m / out[1] % out[0], b = m / (out[0] * out[1]);
    return ((b * padded[0] + line * stride[0]) * padded[1] + column * stride[1]) * channels;
  }
};

struct Params {
  quant::Epilogue epilogue;  // of rows (b, i, j)
  Image image;
  const void* x = nullptr;
  DType dtype = DType::f32;
  int64_t strides[4] = {};  // of x, in elements
  Walk walk;                // of a sample of x, in the order in memory
  quant::Vectors x_scale, x_zero_point;
  const int8_t* weight = nullptr;
  const int32_t* column_sum = nullptr;
  const int32_t* zero_point = nullptr;  // or null
  int64_t pieces = 0;                   // of 64 along K
  bool is_int8 = false;                 // x as it comes
  bool is_signed = true;                // else q is within 0 and 127
  // Scratch memory.
  uint8_t* bytes = nullptr;           // q [B][padded H][padded W][C]
  quant::RowScale* scales = nullptr;  // [B]
  float* ranges = nullptr;            // [B][parts of a range][2]
  int32_t* broken = nullptr;          // [B] on CUDA, [B][H] on the CPU: whether there is NaN
  float* row_scale = nullptr;         // CPU: sx of each row of the product
  int32_t* row_zero = nullptr;        // CPU: zx
  int32_t* row_sum = nullptr;         // sum_k q; CUDA: only with zero_point
  int64_t* starts = nullptr;          // CPU: where the runs of a row begin, from its first pixel on
  uint8_t* rows = nullptr;            // CPU: [parts][rows of a block / 16][pieces][16][64]

  constexpr bool finds_range() const { return x_scale.data == nullptr; }
  // Tiles of AMX, 16 pixels of a line by 64 elements along K, are there without a copy; the sums of rows that
  // a zero point wants are not.
  constexpr bool in_place() const {
    return image.run() % quant::kPiece == 0 && image.out[1] % 16 == 0 && zero_point == nullptr;
  }
};

// How the CPU shares out the product: parts of its rows, and of each, runs of panels. Each part has a block
// of rows of its own.
struct Shares {
  int64_t rows = 1, runs = 1, block = 0;
};
Shares shares_of(const Params& params, const Team& team);

// Into how many parts a sample is cut to find its range.
int64_t parts_of_range(const Params& params);

// Checks all but the result. Returns its shape [B, outputs, OH, OW]. Throws Refusal.
std::array<int64_t, 4> check(const Arguments& arguments);

// Checks the result and lays out the launch, but for scratch memory. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& y);

// Cuts scratch memory, aligned to 64, into its parts; from null: only counts. Returns the number of bytes.
int64_t place_cpu(Params& params, const Team& team, void* scratch);
int64_t place_cuda(Params& params, void* scratch);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::int8_conv2d

namespace fastdiff {
template <>
inline constexpr bool kHasVnni<int8_conv2d::Cpu> = true;
template <>
inline constexpr bool kHasTiles<int8_conv2d::Cpu> = true;
}  // namespace fastdiff
