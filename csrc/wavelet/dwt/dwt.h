// SPDX-License-Identifier: Apache-2.0
// dwt: one level of a wavelet transform of up to three trailing dimensions, all bands in one pass.
//
// Dimension after dimension, outermost first, by the stencil of filter_bank.h. Each sum is a chain of fused
// multiply-adds that begins at 0, with terms in the stencil's order: the same bits everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/isa.h"
#include "core/layout.h"
#include "core/team.h"
#include "wavelet/filter_bank.h"

namespace fastdiff::dwt {

inline constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread

struct Arguments {
  TensorView x;                  // [*, *spatial]
  std::span<const double> taps;  // [2 L]
  int64_t ndim = 0, edge = 0;
  std::optional<TensorView> scale;               // broadcasts to [*, 2**ndim]
  bool divide = false;                           // by scale; else multiply
  std::optional<std::span<const int64_t>> grid;  // [ndim]
};

struct Shape {
  int rank = 0;
  int64_t size[kMaxRank] = {};         // [*, 2**ndim, *grid]
  int64_t stride_like[kMaxRank] = {};  // of a tensor with dimensions in memory as the result has them
  bool contiguous = false;             // or simply row-major
};

enum Operand : int { kX, kY, kScale, kOperands };

struct Params {
  DType dtype = DType::f32;  // of x and y
  int ndim = 0;
  bool divide = false;
  // Elements lie side by side along the last axis, `group` of them to a position: channels, if innermost.
  bool x_rows = false, y_rows = false;
  wavelet::Edge edge = wavelet::Edge::zero;
  int64_t group = 1;
  wavelet::Axis axis[wavelet::kMaxSpatial];  // outermost first
  wavelet::Planes<kOperands> planes;
  const void* x = nullptr;
  void* y = nullptr;
  wavelet::Numbers scale;
  wavelet::Stencil stencil;

  int64_t numel() const;  // of y
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

}  // namespace fastdiff::dwt
