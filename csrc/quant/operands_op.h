// SPDX-License-Identifier: Apache-2.0
// Optional tensors as views, for *_op.cpp files.
#pragma once

#include "core/host.h"

namespace fastdiff::quant {

using OptionalTensor = std::optional<Tensor>;

inline std::optional<TensorView> optional_view(const char* op, const char* argument,
                                               const OptionalTensor& tensor) {
  return tensor ? std::optional(view_of(op, argument, *tensor)) : std::nullopt;
}

}  // namespace fastdiff::quant
