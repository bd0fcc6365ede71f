// SPDX-License-Identifier: Apache-2.0
// A plan as arrays of any library.
#pragma once

#include <string>
#include <utility>

#include "attention/plan.h"
#include "core/python.h"

namespace fastdiff::attention {

class TokenArrays {
 public:
  // `where` begins every refusal: "fastdiff::block_sparse_attention: ".
  TokenArrays(const std::string& where, py::handle q, py::handle k, py::handle v, py::handle q_index,
              py::handle kv_index, uintptr_t stream)
      : q_(q, where + "q", Access::read, stream),
        k_(k, where + "k", Access::read, stream),
        v_(v, where + "v", Access::read, stream),
        q_index_(q_index, where + "q_index", Access::read, stream),
        kv_index_(kv_index, where + "kv_index", Access::read, stream) {}

  // Borrows from this object.
  Tokens tokens() const { return {q_.view(), k_.view(), v_.view(), q_index_.view(), kv_index_.view()}; }

 private:
  DlpackTensor q_, k_, v_;
  OptionalArray q_index_, kv_index_;
};

class PlanArrays {
 public:
  PlanArrays(const std::string& where, py::handle offsets, py::handle columns, py::handle masks,
             py::handle bits, uintptr_t stream)
      : offsets_(offsets, where + "offsets", Access::read, stream),
        columns_(columns, where + "columns", Access::read, stream),
        masks_(masks, where + "masks", Access::read, stream),
        bits_(bits, where + "bits", Access::read, stream) {}

  // Borrows from this object.
  PlanArguments arguments(int64_t block_q, int64_t block_k, std::vector<int64_t> sets = {}) const {
    return {offsets_.view(), columns_.view(), masks_.view(), bits_.view(), block_q, block_k, std::move(sets)};
  }

 private:
  DlpackTensor offsets_, columns_;
  OptionalArray masks_, bits_;
};

class BiasArrays {
 public:
  BiasArrays(const std::string& where, py::handle bias, py::handle q_code, py::handle k_code,
             uintptr_t stream)
      : bias_(bias, where + "bias", Access::read, stream),
        q_code_(q_code, where + "q_code", Access::read, stream),
        k_code_(k_code, where + "k_code", Access::read, stream) {}

  // Borrows from this object.
  BiasArguments arguments() const { return {bias_.view(), q_code_.view(), k_code_.view()}; }

 private:
  OptionalArray bias_, q_code_, k_code_;
};

}  // namespace fastdiff::attention
