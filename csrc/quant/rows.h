// SPDX-License-Identifier: Apache-2.0
// Tensors [..., C] as rows, whatever their strides.
#pragma once

#include <cstdint>
#include <optional>

#include "core/view.h"

namespace fastdiff::quant {

// [M, C]: the row's number is that of its index in row-major order.
struct Rows {
  void* data = nullptr;  // null: none
  DType dtype = DType::f32;
  int8_t dims = 0;                    // of the leading ones, after merging
  int64_t size[kMaxRank - 1] = {};    // innermost first
  int64_t stride[kMaxRank - 1] = {};  // in elements
  int64_t element = 1;                // stride of the last dimension

  FASTDIFF_HD int64_t at(int64_t m) const {
    int64_t sum = 0;
    for (int d = 0; d < dims - 1; ++d) {
      sum += m % size[d] * stride[d];
      m /= size[d];
    }
    return dims > 0 ? sum + m * stride[dims - 1] : 0;
  }
};

// A vector, or a matrix of which only the strides are known.
struct Vectors {
  const void* data = nullptr;  // null: none
  DType dtype = DType::f32;
  int64_t row = 0, element = 1;  // strides; a row's is 0 if it is the same for all
};

Rows rows_of(const TensorView& t);

// The product of all sizes but the last.
int64_t count_rows(const TensorView& t);

// A tensor of one element, [C] or [R, C], whose sizes of 1 are broadcast.
Vectors vectors_of(const std::optional<TensorView>& t);

// ---- checks; throw Refusal --------------------------------------------------------------------------

void check_device(const char* op, const char* argument, const TensorView& t, const TensorView& x);

// float32, float16 or bfloat16, on the device of x.
void check_float(const char* op, const char* argument, const TensorView& t, const TensorView& x);

// Of this dtype on the device of x, contiguous, with so many elements, on CUDA aligned to 16 bytes.
void check_packed(const char* op, const char* argument, const TensorView& t, DType dtype, int64_t numel,
                  const TensorView& x);

// One number for all rows of x [..., C] or one for each.
void check_for_rows(const char* op, const char* argument, const TensorView& t, DType dtype,
                    const TensorView& x);

// Shape [leading of x..., last].
void check_shape_like(const char* op, const char* argument, const TensorView& t, const TensorView& x,
                      int64_t last);

}  // namespace fastdiff::quant
