// SPDX-License-Identifier: Apache-2.0
#include "attention/token_lists.h"

#include <algorithm>

#include "attention/plan.h"
#include "core/layout.h"

namespace fastdiff::attention {
namespace {

void check_device(const char* op, const char* argument, const TensorView& t, Device device) {
  if (t.device != device)
    refuse(op, argument, " must be on ", device_text(device), " like the tokens, got ",
           device_text(t.device));
}

int64_t stride_of(const TensorView& t, int dim) {
  return t.sizes[dim] == 1 ? 0 : t.strides[dim];
}

}  // namespace

void check_sequences(const char* op, const char* argument, const TensorView& t, const TensorView& x) {
  check_device(op, argument, t, x.device);
  if (!is_real_float(t.dtype))
    refuse(op, argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
  if (t.rank != 3) refuse(op, argument, " must have 3 dimensions [B, N, C], got ", shape_text(t));
}

void check_numbers(const char* op, const char* argument, const TensorView& t, const TensorView& x) {
  check_device(op, argument, t, x.device);
  if (t.dtype != DType::i64 && t.dtype != DType::i32)
    refuse(op, argument, " must be int64 or int32, got ", name(t.dtype));
  if (t.rank != 2 || (t.sizes[0] != 1 && t.sizes[0] != x.sizes[0]))
    refuse(op, argument, " must have shape [", x.sizes[0], " or 1, M], got ", shape_text(t));
}

void check_output(const char* op, const char* argument, const TensorView& t, const TensorView& expected) {
  check_result(op, argument, t, expected);
  if (!elements_are_distinct(t))
    refuse(op, argument, " must not have elements that share memory (expanded?)");
}

void check_apart(const char* op, const char* argument, const TensorView& result, const char* input,
                 const std::optional<TensorView>& t) {
  if (t && overlap(result, *t) != Overlap::none) refuse(op, argument, " must not share memory with ", input);
}

Sequences sequences_of(const TensorView& t) {
  return {t.data, t.dtype, stride_of(t, 0), stride_of(t, 1), t.strides[2]};
}

Numbers numbers_of(const TensorView& t) {
  return {t.data, t.dtype == DType::i64, stride_of(t, 0), t.strides[1]};
}

}  // namespace fastdiff::attention
