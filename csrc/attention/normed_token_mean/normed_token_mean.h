// SPDX-License-Identifier: Apache-2.0
// normed_token_mean: the mean over tokens of their layer norm, modulated: all that uniform attention needs of
// them.
//
//   y[b] = (1 + scale[b]) mean_n( (x[b, n] - mean_d x[b, n]) / sqrt(var_d x[b, n] + eps) ) + shift[b]
#pragma once

#include <cstdint>
#include <optional>

#include "core/isa.h"
#include "core/team.h"
#include "core/view.h"

namespace fastdiff::normed_token_mean {

struct Arguments {
  TensorView x;                            // [B, N, D]
  std::optional<TensorView> scale, shift;  // [B|1, D]
  double eps = 0;
};

// Numbers [B, D]; no data: none.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t sample = 0, column = 0;  // strides in elements; 0 where samples share a row
};

struct Params {
  int64_t samples = 0, tokens = 0;  // B, N
  int dim = 0;                      // D
  const void* x = nullptr;
  DType dtype = DType::f32;
  int64_t sample = 0, token = 0, column = 0;  // strides of x
  Matrix scale, shift, y;
  double eps = 0;

  bool wide() const { return dtype == DType::f64; }
  constexpr int64_t numel() const { return samples * dim; }
};

inline constexpr int kMaxDim = 8192;

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

// Memory for the sums of some tokens at a time, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::normed_token_mean
