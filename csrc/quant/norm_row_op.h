// SPDX-License-Identifier: Apache-2.0
// The arguments of norm_row.h as torch gives them, for *_op.cpp files.
#pragma once

#include "core/host.h"
#include "quant/norm_row.h"
namespace fastdiff::quant {

inline NormArguments norm_arguments(const char* op, std::optional<double> eps, bool rms,
                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& scale_by, const OptionalTensor& shift) {
  return {eps,
          rms,
          optional_view(op, "weight", weight),
          optional_view(op, "bias", bias),
          optional_view(op, "scale_by", scale_by),
          optional_view(op, "shift", shift)};
}

}  // namespace fastdiff::quant
