// SPDX-License-Identifier: Apache-2.0
// idwt: one level of an inverse wavelet transform of up to three trailing dimensions, in one pass.
//
// Dimension after dimension, outermost first, by the stencil of filter_bank.h over the bands in turns: pair r
// is the samples 2r - o and 2r + 1 - o. Each sum is a chain of fused multiply-adds that begins at 0, with
// terms in the stencil's order. Samples past the ends are added to those that they were made of, one after
// the other, by rising place: the same bits everywhere. Edges of an inverse are zero or circular and add
// none.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/isa.h"
#include "core/layout.h"
#include "core/team.h"
#include "wavelet/filter_bank.h"

namespace fastdiff::idwt {

inline constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread

struct Arguments {
  TensorView y;                  // [*, 2**ndim, *spatial], or without the first band
  std::span<const double> taps;  // [2 L]
  int64_t ndim = 0, edge = 0;
  std::span<const int64_t> size;            // [ndim], of x
  std::optional<TensorView> scale;          // broadcasts to [*, 2**ndim]
  bool divide = false;                      // by scale; else multiply
  std::optional<TensorView> threshold;      // broadcasts to [*, 2**ndim]
  bool hard = false;                        // what is not below it stays as it is; else it comes closer to 0
  std::optional<TensorView> approximation;  // [*, *spatial], the first band
};

struct Shape {
  int rank = 0;
  int64_t size[kMaxRank] = {};         // [*, *size]
  int64_t stride_like[kMaxRank] = {};  // of a tensor with dimensions in memory as the result has them
  bool contiguous = false;             // or simply row-major
};

enum Operand : int { kX, kY, kApproximation, kScale, kThreshold, kOperands };

// Axis::x and Axis::y are the strides of the result and of the bands; y points to where the first band is or
// would be.
struct Params {
  DType dtype = DType::f32;  // of y, approximation and x
  int ndim = 0;
  bool divide = false, hard = false;
  // Elements lie side by side along the last axis, `group` of them to a position: channels, if innermost.
  // y_rows: and bands are taken as they are, all from y.
  bool x_rows = false, y_rows = false;
  wavelet::Edge edge = wavelet::Edge::zero;
  int64_t group = 1;
  wavelet::Axis axis[wavelet::kMaxSpatial];  // outermost first
  wavelet::Planes<kOperands> planes;
  const void* y = nullptr;
  const void* approximation = nullptr;  // null: in y
  int64_t approximation_stride[wavelet::kMaxSpatial] = {};
  void* x = nullptr;
  wavelet::Numbers scale, threshold;
  wavelet::Stencil stencil;  // backward
  int offset = 0;            // o

  int64_t numel() const;  // of x
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

}  // namespace fastdiff::idwt
