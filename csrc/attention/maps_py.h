// SPDX-License-Identifier: Apache-2.0
// What two maps are made of, as arrays of any library.
#pragma once

#include <string>

#include "attention/maps.h"
#include "core/python.h"

namespace fastdiff::attention {

class MapArrays {
 public:
  // `where` begins every refusal: "fastdiff::attention_map_energy: ".
  MapArrays(const std::string& where, py::handle q, py::handle k, py::handle q_ref, py::handle k_ref,
            uintptr_t stream)
      : q_(q, where + "q", Access::read, stream),
        k_(k, where + "k", Access::read, stream),
        q_ref_(q_ref, where + "q_ref", Access::read, stream),
        k_ref_(k_ref, where + "k_ref", Access::read, stream) {}

  // Borrows from this object.
  MapArguments arguments(double scale) const {
    return {q_.view(), k_.view(), q_ref_.view(), k_ref_.view(), scale};
  }

 private:
  DlpackTensor q_, k_, q_ref_, k_ref_;
};

}  // namespace fastdiff::attention
