// SPDX-License-Identifier: Apache-2.0
// dequantize: numbers of int8.
//
//   x = (q - zero_point) * scale
//
// Floor: q is read once, x is written once; two operations an element.
#pragma once

#include "core/isa.h"
#include "quant/affine.h"

namespace fastdiff::dequantize {

struct Arguments {
  TensorView q;  // int8
  quant::AffineArguments affine;
  DType dtype = DType::f32;  // of the result
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

}  // namespace fastdiff::dequantize
