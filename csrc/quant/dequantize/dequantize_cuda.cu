// SPDX-License-Identifier: Apache-2.0
// dequantize on CUDA: the loop of the family.
#include "quant/affine.cuh"
#include "quant/dequantize/dequantize_math.h"

namespace fastdiff::dequantize {

void launch_cuda(const quant::Elements& elements, int device, void* stream) {
  const OnDevice on(device);
  quant::launch_elements<Formula>(elements, static_cast<cudaStream_t>(stream));
}

}  // namespace fastdiff::dequantize
