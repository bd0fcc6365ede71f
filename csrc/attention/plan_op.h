// SPDX-License-Identifier: Apache-2.0
// A plan as torch's tensors.
#pragma once

#include <utility>

#include "attention/plan.h"
#include "core/host.h"

namespace fastdiff::attention {

inline Tokens tokens_of(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                        const OptionalTensor& q_index, const OptionalTensor& kv_index) {
  return {view_of(op, "q", q), view_of(op, "k", k), view_of(op, "v", v),
          optional_view(op, "q_index", q_index), optional_view(op, "kv_index", kv_index)};
}

inline PlanArguments plan_of(const char* op, const Tensor& offsets, const Tensor& columns,
                             const OptionalTensor& masks, const OptionalTensor& bits, int64_t block_q,
                             int64_t block_k, std::vector<int64_t> sets = {}) {
  return {view_of(op, "offsets", offsets),
          view_of(op, "columns", columns),
          optional_view(op, "masks", masks),
          optional_view(op, "bits", bits),
          block_q,
          block_k,
          std::move(sets)};
}

inline BiasArguments bias_of(const char* op, const OptionalTensor& bias, const OptionalTensor& q_code,
                             const OptionalTensor& k_code) {
  return {optional_view(op, "bias", bias), optional_view(op, "q_code", q_code),
          optional_view(op, "k_code", k_code)};
}

}  // namespace fastdiff::attention
