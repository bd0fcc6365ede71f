// SPDX-License-Identifier: Apache-2.0
// quantize_per_token: activations as int8, with a scale for each token.
//
//   y = (norm(x) * weight + bias) * (1 + scale_by) + shift, see quant/norm_row.h; all of it optional
//   amax = max(max_k |y|, 2^-100), scale = amax / 127, q = round(y * (127 / amax))
//
// Floor: x is read once, q and the scales are written once; 10 floating-point operations an element with a
// norm.
#pragma once

#include "core/isa.h"
#include "quant/norm_row.h"

namespace fastdiff::quantize_per_token {

struct Arguments {
  TensorView x;  // [..., K]
  quant::NormArguments norm;
};

struct Params {
  quant::NormedRows rows;
  quant::RowTensor q, scale;
};

inline constexpr int64_t kSerialNumel = 32768;  // fewer elements are left to one thread

// Checks all but the results. Throws Refusal.
void check(const Arguments& arguments);

// Checks the results, int8 [..., K] and float32 [..., 1], and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& q, const TensorView& scale);

template <Isa>
struct Cpu {
  static void run(const Params& params, int64_t begin, int64_t end);  // rows
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::quantize_per_token
