// SPDX-License-Identifier: Apache-2.0
// Small integers inside words, as floats, for lanes of any kind; beside lanes.h a place with intrinsics.
#pragma once

#include "core/lanes.h"

namespace fastdiff {
namespace {

// ---- one element ------------------------------------------------------------------------------------

// The float 2^23 + x has x in its last bits: fewer cycles than a conversion.
inline constexpr uint32_t kUnitBits = 0x4b000000u;
inline constexpr float kUnit = 8388608.0f;

// Byte N, with its sign.
template <int N>
FASTDIFF_HD float signed_byte(uint32_t a) {
  return as_float(((a >> (8 * N) & 255u) ^ 128u) | kUnitBits) - (kUnit + 128.0f);
}
// Bits 4 N ... 4 N + 3, less 8.
template <int N>
FASTDIFF_HD float signed_nibble(uint32_t a) {
  return as_float((a >> (4 * N) & 15u) | kUnitBits) - (kUnit + 8.0f);
}

// ---- a register of elements -------------------------------------------------------------------------

#if !defined(__CUDACC__) && defined(__AVX2__)

template <int N>
inline __m256 signed_byte(__m256i a) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(N == 3 ? a : _mm256_slli_epi32(a, 24 - 8 * N), 24));
}
template <int N>
inline __m256 signed_nibble(__m256i a) {
  const __m256i x = _mm256_and_si256(_mm256_srli_epi32(a, 4 * N), _mm256_set1_epi32(15));
  const __m256i unit = _mm256_set1_epi32(static_cast<int>(kUnitBits));
  return _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(x, unit)), _mm256_set1_ps(kUnit + 8.0f));
}

#if defined(__AVX512F__)

template <int N>
inline __m512 signed_byte(__m512i a) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(N == 3 ? a : _mm512_slli_epi32(a, 24 - 8 * N), 24));
}
template <int N>
inline __m512 signed_nibble(__m512i a) {
  // A table's index is the last 4 bits.
  const __m512 numbers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return _mm512_permutexvar_ps(_mm512_srli_epi32(a, 4 * N), numbers);
}

#endif
#endif

}  // namespace
}  // namespace fastdiff
