// SPDX-License-Identifier: Apache-2.0
// What the desks of this family ask of tensors: operands_desk.cpp. Every check throws Refusal.
#pragma once

#include <optional>

#include "core/view.h"

namespace fastdiff::quant {

// float32, float16, bfloat16 or float64, on this device.
void check_float(const char* op, const char* argument, const TensorView& t, Device device);

// Every dimension, counted from the last, is that of `x` or 1.
bool broadcasts_to(const TensorView& t, const TensorView& x);

// A result of the dtype, shape and device of `expected`, whose elements are distinct.
void check_result(const char* op, const char* argument, const TensorView& t, const TensorView& expected);

// A result shares no memory with an input; not given: nothing to check.
void check_apart(const char* op, const char* argument, const TensorView& result, const char* input,
                 const std::optional<TensorView>& t);

}  // namespace fastdiff::quant
