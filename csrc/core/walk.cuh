// SPDX-License-Identifier: Apache-2.0
// Elements of a sample by their number, on the device.
#pragma once

#include "core/lanes.h"
#include "core/launch.cuh"
#include "core/walk.h"

namespace fastdiff {
namespace {

// Where an element of a sample is, in dimensions of these sizes and strides.
template <class Index>
__device__ int64_t offset_of(Index element, int dims, const int64_t* size, const int64_t* stride) {
  int64_t sum = 0;
#pragma unroll 1
  for (int d = 0; d < dims - 1; ++d) {
    const Index extent = static_cast<Index>(size[d]);
    sum += static_cast<int64_t>(element % extent) * stride[d];
    element /= extent;
  }
  return sum + static_cast<int64_t>(element) * stride[dims - 1];
}

// ---- quads: four consecutive elements as one access of 16 bytes, or 8 in a 16-bit type
// ------------------------

inline constexpr int kQuad = 4;

// Elements [element, element + kQuad), float32 or 16-bit, aligned to the size of the access.
__device__ __forceinline__ void load_quad(const void* data, DType dtype, int64_t element, float (&x)[kQuad]) {
  if (dtype == DType::f32) {
    const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + element);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    return;
  }
  const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + element);
  const uint32_t words[kQuad] = {v.x & 0xffffu, v.x >> 16, v.y & 0xffffu, v.y >> 16};
  for (int j = 0; j < kQuad; ++j) {
    const auto bits = static_cast<uint16_t>(words[j]);
    x[j] = dtype == DType::f16 ? widen(half_t{bits}) : widen(bfloat16_t{bits});
  }
}

__device__ __forceinline__ void store_quad(void* data, DType dtype, int64_t element,
                                           const float (&y)[kQuad]) {
  if (dtype == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + element) = make_float4(y[0], y[1], y[2], y[3]);
    return;
  }
  uint32_t bits[kQuad];
  for (int j = 0; j < kQuad; ++j) bits[j] = dtype == DType::f16 ? to_half(y[j]).bits : to_bfloat16(y[j]).bits;
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + element) =
      make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
}

// Whether samples of this layout can be accessed so, from elements that are multiples of kQuad.
inline bool has_quads(const void* data, DType dtype, int dims, const int64_t* stride, int64_t samples,
                      int64_t sample_stride) {
  const auto bytes = static_cast<uintptr_t>(kQuad * size_of(dtype));
  return dtype != DType::f64 && dims == 1 && stride[0] == 1 &&
         reinterpret_cast<uintptr_t>(data) % bytes == 0 && (samples == 1 || sample_stride % kQuad == 0);
}

}  // namespace
}  // namespace fastdiff
