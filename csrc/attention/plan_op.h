// SPDX-License-Identifier: Apache-2.0
// A plan as torch's tensors.
#pragma once

#include "attention/plan.h"
#include "core/host.h"

namespace fastdiff::attention {

inline std::optional<TensorView> optional_view(const char* op, const char* argument,
                                               const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(view_of(op, argument, *tensor)) : std::nullopt;
}

inline Tokens tokens_of(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& q_index, const std::optional<Tensor>& kv_index) {
  return {view_of(op, "q", q), view_of(op, "k", k), view_of(op, "v", v),
          optional_view(op, "q_index", q_index), optional_view(op, "kv_index", kv_index)};
}

inline PlanArguments plan_of(const char* op, const Tensor& offsets, const Tensor& columns,
                             const std::optional<Tensor>& masks, const std::optional<Tensor>& bits,
                             int64_t block_q, int64_t block_k) {
  return {view_of(op, "offsets", offsets),
          view_of(op, "columns", columns),
          optional_view(op, "masks", masks),
          optional_view(op, "bits", bits),
          block_q,
          block_k};
}

}  // namespace fastdiff::attention
