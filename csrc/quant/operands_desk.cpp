// SPDX-License-Identifier: Apache-2.0
#include "quant/operands.h"

#include <algorithm>

#include "core/layout.h"

namespace fastdiff::quant {

void check_float(const char* op, const char* argument, const TensorView& t, Device device) {
  if (t.device != device)
    refuse(op, argument, " must be on ", device_text(device), " like the input, got ", device_text(t.device));
  if (!is_real_float(t.dtype))
    refuse(op, argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
}

bool broadcasts_to(const TensorView& t, const TensorView& x) {
  if (t.rank > x.rank) return false;
  for (int d = 1; d <= t.rank; ++d)
    if (t.size(-d) != 1 && t.size(-d) != x.size(-d)) return false;
  return true;
}

void check_result(const char* op, const char* argument, const TensorView& t, const TensorView& expected) {
  if (t.dtype != expected.dtype)
    refuse(op, argument, " must be ", name(expected.dtype), ", got ", name(t.dtype));
  if (t.rank != expected.rank || !std::equal(t.sizes, t.sizes + t.rank, expected.sizes))
    refuse(op, argument, " must have shape ", shape_text(expected), ", got ", shape_text(t));
  if (t.device != expected.device)
    refuse(op, argument, " must be on ", device_text(expected.device), " like the input, got ",
           device_text(t.device));
  if (!elements_are_distinct(t))
    refuse(op, argument, " must not have elements that share memory (expanded?)");
}

void check_apart(const char* op, const char* argument, const TensorView& result, const char* input,
                 const std::optional<TensorView>& t) {
  if (t && overlap(result, *t) != Overlap::none) refuse(op, argument, " must not share memory with ", input);
}

}  // namespace fastdiff::quant
