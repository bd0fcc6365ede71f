// SPDX-License-Identifier: Apache-2.0
// Tokens [B, N, C] and lists of their numbers: what the rooms that move, merge and match tokens have in
// common.
#pragma once

#include <cstdint>
#include <optional>

#include "core/view.h"

namespace fastdiff::attention {

// Tokens [B, N, C] of any float dtype; strides in elements, 0 where it is broadcast.
struct Sequences {
  void* data = nullptr;  // null: none
  DType dtype = DType::f32;
  int64_t sample = 0, token = 0, channel = 0;

  FASTDIFF_HD int64_t at(int64_t b, int64_t n) const { return b * sample + n * token; }
};

// Whole numbers [B|1, M], int64 or int32.
struct Numbers {
  const void* data = nullptr;
  bool is_long = true;
  int64_t sample = 0, step = 0;  // strides; 0: the same for all samples

  FASTDIFF_HD int64_t of(int64_t b, int64_t m) const {
    const int64_t at = b * sample + m * step;
    return is_long ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
  }
};

// ---- the desk's part: token_lists_desk.cpp ----------------------------------------------------------

// A float tensor on the device of `x`, [B, N, C]. Throws Refusal.
void check_sequences(const char* op, const char* argument, const TensorView& t, const TensorView& x);

// int64 or int32 on the device of `x`, [B|1, M]. Throws Refusal.
void check_numbers(const char* op, const char* argument, const TensorView& t, const TensorView& x);

// A result of a dtype and shape like `expected`, whose elements are distinct. Throws Refusal.
void check_output(const char* op, const char* argument, const TensorView& t, const TensorView& expected);

// A result shares no memory with an input; not given: nothing to check. Throws Refusal.
void check_apart(const char* op, const char* argument, const TensorView& result, const char* input,
                 const std::optional<TensorView>& t);

Sequences sequences_of(const TensorView& t);
Numbers numbers_of(const TensorView& t);

}  // namespace fastdiff::attention
