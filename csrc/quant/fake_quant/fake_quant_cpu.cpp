// SPDX-License-Identifier: Apache-2.0
// fake_quant on the CPU, compiled once per ISA.
#include "quant/affine_cpu.h"
#include "quant/fake_quant/fake_quant_math.h"

namespace fastdiff::fake_quant {

template <>
void Cpu<kIsa>::run(const quant::Elements& elements, int64_t begin, int64_t end) {
  if (elements.gradient.data != nullptr) {
    quant::run_elements<Backward>(elements, begin, end);
  } else {
    quant::run_elements<Forward>(elements, begin, end);
  }
}

}  // namespace fastdiff::fake_quant
