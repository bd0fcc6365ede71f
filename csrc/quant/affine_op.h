// SPDX-License-Identifier: Apache-2.0
// affine.h as torch calls it, for *_op.cpp files.
#pragma once

#include "core/host.h"
#include "quant/affine.h"
namespace fastdiff::quant {

inline AffineArguments affine_arguments(const char* op, const Tensor& scale, const OptionalTensor& zero_point,
                                        const OptionalTensor& step) {
  return {view_of(op, "scale", scale), optional_view(op, "zero_point", zero_point),
          optional_view(op, "step", step)};
}

// cpu(elements, begin, end) on torch's threads, or launch_cuda on its stream.
template <class Cpu>
void run_elements(const Elements& elements, Device device, void (*launch_cuda)(const Elements&, int, void*),
                  const Cpu& cpu) {
  if (elements.total() == 0) return;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(elements, device.index, on.stream());
  constexpr int64_t kTile = 1024;
  parallel_ranges(elements.total(), kTile, kSerialElements,
                  [&](int64_t begin, int64_t end) { cpu(elements, begin, end); });
}

}  // namespace fastdiff::quant
