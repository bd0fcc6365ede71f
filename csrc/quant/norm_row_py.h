// SPDX-License-Identifier: Apache-2.0
// The arguments of norm_row.h as arrays, for *_py.cpp files.
#pragma once

#include <string>

#include "core/python.h"
#include "quant/norm_row.h"

namespace fastdiff::quant {

// Borrowed for as long as this object lives.
class NormArrays {
 public:
  NormArrays(const std::string& op, const py::object& eps, bool rms, const py::object& weight,
             const py::object& bias, const py::object& scale_by, const py::object& shift, uintptr_t stream)
      : eps_(eps.is_none() ? std::nullopt : std::optional(eps.cast<double>())),
        rms_(rms),
        weight_(weight, op + "weight", Access::read, stream),
        bias_(bias, op + "bias", Access::read, stream),
        scale_by_(scale_by, op + "scale_by", Access::read, stream),
        shift_(shift, op + "shift", Access::read, stream) {}

  NormArguments arguments() const {
    return {eps_, rms_, weight_.view(), bias_.view(), scale_by_.view(), shift_.view()};
  }

 private:
  std::optional<double> eps_;
  bool rms_;
  OptionalArray weight_, bias_, scale_by_, shift_;
};

}  // namespace fastdiff::quant
