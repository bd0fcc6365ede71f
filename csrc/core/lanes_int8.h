// SPDX-License-Identifier: Apache-2.0
// What quantisation needs of lanes besides lanes.h: rounding to whole numbers, int8 in memory, and the
// largest of non-negative words.
#pragma once

#include "core/lanes.h"

namespace fastdiff {
namespace {

// ---- one element ----------------------------------------------------------------------------------

// To the nearest whole number, halves to even; NaN and infinities stay.
FASTDIFF_HD float round_(float a) {
#if defined(__CUDA_ARCH__)
  return rintf(a);
#else
  const float magnitude = abs_(a), integers = 0x1p23f;  // from there on every number is whole
  if (!(magnitude < integers)) return a;
  const uint32_t sign = bits_as<uint32_t>(a) & 0x80000000u;
  return bits_as<float>(bits_as<uint32_t>((magnitude + integers) - integers) | sign);
#endif
}
FASTDIFF_HD double round_(double a) {
#if defined(__CUDA_ARCH__)
  return rint(a);
#else
  const double magnitude = abs_(a), integers = 0x1p52;
  if (!(magnitude < integers)) return a;
  const uint64_t sign = bits_as<uint64_t>(a) & 0x8000000000000000u;
  return bits_as<double>(bits_as<uint64_t>((magnitude + integers) - integers) | sign);
#endif
}
// x, or where it is NaN the other
template <class T>
FASTDIFF_HD T number_or(T x, T other) {
  return x == x ? x : other;
}
// The larger of words below 2^31.
FASTDIFF_HD uint32_t larger(uint32_t a, uint32_t b) {
  return a > b ? a : b;
}
// Rounded; within -128 and 127.
template <class T>
FASTDIFF_HD int8_t to_int8(T x) {
  return static_cast<int8_t>(static_cast<int>(round_(x)));
}

// ---- a register -----------------------------------------------------------------------------------

#if !defined(__CUDACC__)

struct Int8Lanes;  // load: as float lanes; store: rounded, within -128 and 127

#if defined(__AVX512F__) && !defined(FASTDIFF_SHORT_LANES)

inline __m512 round_(__m512 a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m512d round_(__m512d a) {
  return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m512 number_or(__m512 x, __m512 other) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x, other);
}
inline __m512d number_or(__m512d x, __m512d other) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q), x, other);
}
inline __m512i larger(__m512i a, __m512i b) {
  return _mm512_max_epi32(a, b);
}
inline uint32_t largest(__m512i a) {
  return static_cast<uint32_t>(_mm512_reduce_max_epi32(a));
}
struct Int8Lanes {
  static __m512 load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(int8_t* p, __m512 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
};

#elif defined(__AVX2__)

inline __m256 round_(__m256 a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256d round_(__m256d a) {
  return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256 number_or(__m256 x, __m256 other) {
  return _mm256_blendv_ps(x, other, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
inline __m256d number_or(__m256d x, __m256d other) {
  return _mm256_blendv_pd(x, other, _mm256_cmp_pd(x, x, _CMP_UNORD_Q));
}
inline __m256i larger(__m256i a, __m256i b) {
  return _mm256_max_epi32(a, b);
}
inline uint32_t largest(__m256i a) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}
struct Int8Lanes {
  static __m256 load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(int8_t* p, __m256 v) {
    const __m256i words = _mm256_cvtps_epi32(v);
    const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(shorts, shorts));
  }
};

#else

inline uint32_t largest(uint32_t a) {
  return a;
}
struct Int8Lanes {
  static float load(const int8_t* p) { return static_cast<float>(*p); }
  static void store(int8_t* p, float v) { *p = to_int8(v); }
};

#endif
#endif  // !__CUDACC__

}  // namespace
}  // namespace fastdiff
