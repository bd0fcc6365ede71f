// SPDX-License-Identifier: Apache-2.0
// Questions about memory layouts that every front desk asks.
#pragma once

#include "core/view.h"

namespace fastdiff {

// No two elements share memory. Exact for layouts whose strides nest (every layout that a permutation,
// slice or expansion of a dense tensor gives); true is never answered for one that overlaps.
bool elements_are_distinct(const TensorView& view);

// No gaps either: the elements are a permutation of one contiguous block.
bool is_dense(const TensorView& view);

// Row-major without gaps, as PyTorch has it: strides of dimensions of one element do not matter.
bool is_contiguous(const TensorView& view);

enum class Overlap {
  none,
  same,     // the same elements at the same places
  partial,  // anything else that shares memory, or may
};
Overlap overlap(const TensorView& a, const TensorView& b);

}  // namespace fastdiff
