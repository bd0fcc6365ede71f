// SPDX-License-Identifier: Apache-2.0
// Products of bytes of e4m3 on the tensor cores: their own from sm_89 on, before that those of float16.
#pragma once

#include "core/ptx.cuh"

namespace fastdiff::quant {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890

__device__ constexpr float kE4m3Unit = 1.0f;

__device__ __forceinline__ void multiply_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_m16n8k32_e4m3(d, a, b);
}

#else

// A float16 that has e4m3's exponent and mantissa is 2^8 times less, because exponents count from -15 there
// and from -7 here; subnormal numbers are right. So products are 2^16 times less.
__device__ constexpr float kE4m3Unit = 65536.0f;

// Elements 0 and 2 of four; of four shifted by a byte 1 and 3.
__device__ __forceinline__ uint32_t halves_of(uint32_t four) {
  return (four & 0x00800080u) << 8 | (four & 0x007f007fu) << 7;
}

__device__ __forceinline__ void multiply_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = a[2 * i], high = a[2 * i + 1];
    ptx::mma_m16n8k16_f16(d, {halves_of(low), halves_of(high), halves_of(low >> 8), halves_of(high >> 8)},
                          {halves_of(b[i]), halves_of(b[i] >> 8)});
  }
}

#endif

}  // namespace
}  // namespace fastdiff::quant
