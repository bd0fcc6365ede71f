// SPDX-License-Identifier: Apache-2.0
// fake_quant on CUDA: the loop of the family.
#include "quant/affine.cuh"
#include "quant/fake_quant/fake_quant_math.h"

namespace fastdiff::fake_quant {

void launch_cuda(const quant::Elements& elements, int device, void* stream) {
  const OnDevice on(device);
  if (elements.gradient.data != nullptr) {
    quant::launch_elements<Backward>(elements, static_cast<cudaStream_t>(stream));
  } else {
    quant::launch_elements<Forward>(elements, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::fake_quant
