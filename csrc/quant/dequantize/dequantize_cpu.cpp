// SPDX-License-Identifier: Apache-2.0
// dequantize on the CPU, compiled once per ISA.
#include "quant/affine_cpu.h"
#include "quant/dequantize/dequantize_math.h"

namespace fastdiff::dequantize {

template <>
void Cpu<kIsa>::run(const quant::Elements& elements, int64_t begin, int64_t end) {
  quant::run_elements<Formula>(elements, begin, end);
}

}  // namespace fastdiff::dequantize
