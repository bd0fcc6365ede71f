// SPDX-License-Identifier: Apache-2.0
// How kernels find the elements of a sample: sizes and strides after core/space.h has merged the dimensions.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastdiff {

inline constexpr int kMaxDims = 6;  // after merging

// An input or output in the merged iteration space: the order of a sample's elements is that of the first
// output in memory, and dimensions that all of them walk alike are one. Strides are in elements, innermost
// dimension first; complex tensors count their interleaved real and imaginary parts as elements.
struct Operand {
  void* data = nullptr;
  // Side by side in one word: the 48 operands of linear_step must fit into the 4 KiB of a kernel's arguments.
  int64_t sample_stride : 56 = 0;
  DType dtype : 8 = DType::f32;
  int64_t stride[kMaxDims] = {};
};

// How something else that varies over the elements follows the same order: with dimensions of its own, so
// that a mask that is shared by the channels does not cut the operands' long runs into rows.
struct Walk {
  int64_t sample_stride : 56 = 0;  // in one word with the next, as in Operand
  int64_t dims : 8 = 0;
  int64_t size[kMaxDims] = {};    // innermost first
  int64_t stride[kMaxDims] = {};  // in elements
};

}  // namespace fastdiff
