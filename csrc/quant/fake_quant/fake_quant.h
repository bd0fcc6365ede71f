// SPDX-License-Identifier: Apache-2.0
// fake_quant: numbers as they are after quantisation, and the straight-through gradient.
//
//   y = (clamp(round(x * (1 / scale)) + zero_point, low, high) - zero_point) * scale
//
// With a gradient: y is that gradient where the clamp changes nothing, 0 elsewhere.
//
// Floor: x (and the gradient) is read once, y is written once; 7 operations an element.
#pragma once

#include "core/isa.h"
#include "quant/affine.h"

namespace fastdiff::fake_quant {

struct Arguments {
  TensorView x;
  quant::AffineArguments affine;
  int64_t low = 0, high = 0;
  std::optional<TensorView> gradient;  // like x
};

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
quant::Elements prepare(const Arguments& arguments, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const quant::Elements& elements, int64_t begin, int64_t end);
};

void launch_cuda(const quant::Elements& elements, int device, void* stream);

}  // namespace fastdiff::fake_quant
