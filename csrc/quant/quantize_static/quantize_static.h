// SPDX-License-Identifier: Apache-2.0
// quantize_static: activations as int8 with a scale and a zero point that are known before: of the tensor,
// from a table indexed by step.
//
//   y = (norm(x) * weight + bias) * (1 + scale_by) + shift, see quant/norm_row.h; all of it optional
//   q = clamp(round(y * (1 / scale)) + zero_point, low, high)
//
// Floor: x is read once, q is written once. As it is, x is walked element by element; normed, row by row.
#pragma once

#include "core/isa.h"
#include "quant/affine.h"
#include "quant/norm_row.h"

namespace fastdiff::quantize_static {

struct Arguments {
  TensorView x;  // [..., K]
  quant::AffineArguments affine;
  int64_t low = 0, high = 0;
  quant::NormArguments norm;
};

struct Params {
  bool by_rows = false;      // else by elements
  quant::Elements elements;  // its Affine is that of the rows too
  quant::NormedRows rows;
  quant::RowTensor q, step;  // step: no data: no table

  constexpr int64_t total() const { return by_rows ? rows.rows : elements.total(); }
};

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result, int8 like x, and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const Params& params, int64_t begin, int64_t end);  // of total()
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::quantize_static
