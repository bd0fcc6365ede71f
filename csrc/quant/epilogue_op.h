// SPDX-License-Identifier: Apache-2.0
// The epilogue's arguments from tensors of torch, for *_op.cpp files.
#pragma once

#include "core/host.h"
#include "quant/epilogue.h"

namespace fastdiff::quant {

// In the order of the schemas.
inline EpilogueArguments epilogue_arguments(const char* op, const OptionalTensor& bias,
                                            const OptionalTensor& gate, const OptionalTensor& residual,
                                            const OptionalTensor& down, const OptionalTensor& up,
                                            const OptionalTensor& gates, int64_t activation, bool gated) {
  return {optional_view(op, "bias", bias),
          optional_view(op, "gate", gate),
          optional_view(op, "residual", residual),
          optional_view(op, "down", down),
          optional_view(op, "up", up),
          optional_view(op, "gates", gates),
          activation,
          gated};
}

// By its ScalarType, or -1: that of x, float32 where x is no such float.
inline DType result_dtype(const char* op, const TensorView& x, int64_t code) {
  const std::optional<DType> named = dtype_from_code(code);
  if (code != -1 && !named) refuse(op, "dtype must be float32, float16 or bfloat16, got ScalarType ", code);
  return named.value_or(is_real_float(x.dtype) ? x.dtype : DType::f32);
}

// y [..., outputs].
inline Tensor empty_result(const char* op, const TensorView& x, int64_t columns, bool gated, int64_t code) {
  int64_t sizes[kMaxRank];
  std::copy_n(x.sizes, x.rank, sizes);
  sizes[x.rank - 1] = gated ? columns / 2 : columns;
  return empty_output(x, x.rank, sizes, result_dtype(op, x, code));
}

// A result that the caller gives has the dtype that was asked for, if one was.
inline void check_code(const char* op, const TensorView& y, int64_t code) {
  if (code != -1 && dtype_from_code(code) != y.dtype)
    refuse(op, "out must have the dtype that is asked for, ScalarType ", code, ", got ", name(y.dtype));
}

}  // namespace fastdiff::quant
