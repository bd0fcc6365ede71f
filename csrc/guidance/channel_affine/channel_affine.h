// SPDX-License-Identifier: Apache-2.0
// channel_affine: each plane (a channel of a sample) moved to a target mean and deviation.
//
//   mean = w_s mean_s + w_c mean_c        deviation = w_s deviation_s + w_c deviation_c
//   y = deviation / (deviation_c + eps) (x - mean_c) + mean
//
// with the moments of the plane itself (c) and those of a style's plane, or given ones (s). AdaIN is w_s = 1,
// w_c = 0. The sums are in the order of core/reduce.h: the same bits everywhere.
#pragma once

#include <cstdint>
#include <optional>

#include "core/isa.h"
#include "core/space.h"
#include "core/team.h"

namespace fastdiff::channel_affine {

struct Arguments {
  TensorView x;                         // [B, C, *plane]
  std::optional<TensorView> style;      // [B|1, C, *another plane]
  std::optional<TensorView> mean, std;  // instead of style: [], [C] or [B|1, C]
  double style_weight = 1, content_weight = 0, eps = 0;
};

// A tensor [B, C, *plane].
struct Planes {
  void* data = nullptr;
  DType dtype = DType::f32;
  bool wide = false;                              // its arithmetic is float64
  int64_t sample_stride = 0, channel_stride = 0;  // in elements; 0 where samples share one

  int64_t numel = 0;  // of a plane
  int dims = 0;
  int64_t size[kMaxDims] = {};  // innermost first, in row-major order; their product is numel
  int64_t stride[kMaxDims] = {};
};

// A number for each plane, of any float dtype.
struct Numbers {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t sample_stride = 0, channel_stride = 0;
};

struct Params {
  int64_t samples = 0, channels = 0;  // B, C
  Planes x, y;                        // merged alike
  Planes style;                       // no data: the moments are given
  int64_t style_samples = 0;          // B, 1, or 0 without a style
  Numbers mean, std;                  // no data, and no style: w_s is 0
  double style_weight = 0, content_weight = 0, eps = 0;
  bool stream = false;  // more bytes than the last-level cache holds: write new lines past the caches
};

// Checks all but the result and gives its shape. Throws Refusal.
Shape check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Shape& shape, const TensorView& result);

// Memory that a launch needs besides, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);                   // launch_cuda, on the device
int64_t cpu_scratch_bytes(const Params& params, int threads);  // Cpu::run

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::channel_affine
