// SPDX-License-Identifier: Apache-2.0
// The epilogue's arguments from arrays of any library, for *_py.cpp files.
#pragma once

#include <string>

#include "core/python.h"
#include "quant/epilogue.h"

namespace fastdiff::quant {

class EpilogueArrays {
 public:
  // `where` begins every refusal.
  EpilogueArrays(const std::string& where, const py::object& bias, const py::object& gate,
                 const py::object& residual, const py::object& down, const py::object& up,
                 const py::object& gates, uintptr_t stream)
      : bias_(bias, where + "bias", Access::read, stream),
        gate_(gate, where + "gate", Access::read, stream),
        residual_(residual, where + "residual", Access::read, stream),
        down_(down, where + "down", Access::read, stream),
        up_(up, where + "up", Access::read, stream),
        gates_(gates, where + "gates", Access::read, stream) {}

  EpilogueArguments arguments(int64_t activation, bool gated) const {
    return {bias_.view(), gate_.view(),  residual_.view(), down_.view(),
            up_.view(),   gates_.view(), activation,       gated};
  }

 private:
  OptionalArray bias_, gate_, residual_, down_, up_, gates_;
};

}  // namespace fastdiff::quant
