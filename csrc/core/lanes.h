// SPDX-License-Identifier: Apache-2.0
// Lanes: one vocabulary for a single float and for a SIMD register. The only file with intrinsics.
//
// A formula is written once, as a template over the lane type, and runs as CUDA thread code, as the
// portable CPU build and as AVX code. Every function here is one correctly rounded operation (or exact
// bit arithmetic), so equal formulas give equal bits on every backend. Nothing may be contracted:
// the build passes -ffp-contract=off and --fmad=false, and fused multiply-adds are spelled fma_().
//
// The anonymous namespace is on purpose: this header is compiled with different -m flags in different
// translation units, and the linker must never merge their copies.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

#if !defined(__CUDACC__) && defined(__AVX2__)
// gcc: register types lose their attributes as template arguments (harmless: alignment follows the
// type), and gcc 12's AVX-512 headers pass an undefined register that the mask never selects.
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace fastdiff {
namespace {

// ---- one element: float, double, uint32_t ---------------------------------------------------------

FASTDIFF_HD float fma_(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
FASTDIFF_HD double fma_(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}
FASTDIFF_HD float add(float a, float b) {
  return a + b;
}
FASTDIFF_HD double add(double a, double b) {
  return a + b;
}
FASTDIFF_HD float sub(float a, float b) {
  return a - b;
}
FASTDIFF_HD double sub(double a, double b) {
  return a - b;
}
FASTDIFF_HD float mul(float a, float b) {
  return a * b;
}
FASTDIFF_HD double mul(double a, double b) {
  return a * b;
}
FASTDIFF_HD float div(float a, float b) {
  return a / b;
}
FASTDIFF_HD double div(double a, double b) {
  return a / b;
}
FASTDIFF_HD float abs_(float a) {
  return bits_as<float>(bits_as<uint32_t>(a) & 0x7fffffffu);
}
FASTDIFF_HD double abs_(double a) {
  return bits_as<double>(bits_as<uint64_t>(a) & 0x7fffffffffffffffu);
}
FASTDIFF_HD float sqrt_(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}
FASTDIFF_HD double sqrt_(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return __builtin_sqrt(a);
#endif
}
// y, but not below lo (above hi); a NaN in y stays.
template <class T>
FASTDIFF_HD T at_least(T lo, T y) {
  return y < lo ? lo : y;
}
template <class T>
FASTDIFF_HD T at_most(T hi, T y) {
  return y > hi ? hi : y;
}
// where c == 0: a, else b
template <class T>
FASTDIFF_HD T if_zero(T c, T a, T b) {
  return c == T(0) ? a : b;
}

FASTDIFF_HD uint32_t add(uint32_t a, uint32_t b) {
  return a + b;
}
FASTDIFF_HD uint32_t sub(uint32_t a, uint32_t b) {
  return a - b;
}
FASTDIFF_HD uint32_t and_(uint32_t a, uint32_t b) {
  return a & b;
}
FASTDIFF_HD uint32_t xor_(uint32_t a, uint32_t b) {
  return a ^ b;
}
template <int N>
FASTDIFF_HD uint32_t shift_right(uint32_t a) {
  return a >> N;
}
template <int N>
FASTDIFF_HD uint32_t shift_left(uint32_t a) {
  return a << N;
}
// {high, low} words of a * b
FASTDIFF_HD void mul_wide(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  const uint64_t product = static_cast<uint64_t>(a) * b;
  high = static_cast<uint32_t>(product >> 32);
  low = static_cast<uint32_t>(product);
}
FASTDIFF_HD float float_from_signed(uint32_t a) {
  return static_cast<float>(static_cast<int32_t>(a));
}
FASTDIFF_HD float as_float(uint32_t a) {
  return bits_as<float>(a);
}
FASTDIFF_HD uint32_t as_bits(float a) {
  return bits_as<uint32_t>(a);
}

template <class V>
FASTDIFF_HD V splat(float a);
template <>
FASTDIFF_HD float splat<float>(float a) {
  return a;
}
template <class V>
FASTDIFF_HD V splat(double a);
template <>
FASTDIFF_HD double splat<double>(double a) {
  return a;
}
template <class U>
FASTDIFF_HD U splat(uint32_t a);
template <>
FASTDIFF_HD uint32_t splat<uint32_t>(uint32_t a) {
  return a;
}

// The unsigned lane that goes with a float lane, and the other way round.
template <class F>
struct WordOf {
  using type = uint32_t;
};
template <class U>
struct FloatOf {
  using type = float;
};

#if !defined(__CUDACC__)

// ---- a register of elements -----------------------------------------------------------------------
// Lanes<T> names the register type for element type T in this translation unit, its width, and how it
// is loaded from and stored to each storage dtype.

template <class T>
struct Lanes;

#if defined(__AVX2__)

// The sum of a register's lanes, halves first.
inline float total_of(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline double total_of(__m256d v) {
  const __m128d sum = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(sum, _mm_unpackhi_pd(sum, sum)));
}

#endif

#if defined(__AVX512F__)

inline __m512 fma_(__m512 a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline __m512 add(__m512 a, __m512 b) {
  return _mm512_add_ps(a, b);
}
inline __m512 sub(__m512 a, __m512 b) {
  return _mm512_sub_ps(a, b);
}
inline __m512 mul(__m512 a, __m512 b) {
  return _mm512_mul_ps(a, b);
}
inline __m512 div(__m512 a, __m512 b) {
  return _mm512_div_ps(a, b);
}
inline __m512 abs_(__m512 a) {
  return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
}
inline __m512 sqrt_(__m512 a) {
  return _mm512_sqrt_ps(a);
}
inline __m512 at_least(__m512 lo, __m512 y) {
  return _mm512_max_ps(lo, y);  // the second operand is returned when either is NaN
}
inline __m512 at_most(__m512 hi, __m512 y) {
  return _mm512_min_ps(hi, y);
}
inline __m512 if_zero(__m512 c, __m512 a, __m512 b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_EQ_OQ), b, a);
}
inline __m512d fma_(__m512d a, __m512d b, __m512d c) {
  return _mm512_fmadd_pd(a, b, c);
}
inline __m512d add(__m512d a, __m512d b) {
  return _mm512_add_pd(a, b);
}
inline __m512d sub(__m512d a, __m512d b) {
  return _mm512_sub_pd(a, b);
}
inline __m512d mul(__m512d a, __m512d b) {
  return _mm512_mul_pd(a, b);
}
inline __m512d div(__m512d a, __m512d b) {
  return _mm512_div_pd(a, b);
}
inline __m512d abs_(__m512d a) {
  return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a);
}
inline __m512d at_least(__m512d lo, __m512d y) {
  return _mm512_max_pd(lo, y);
}
inline __m512d at_most(__m512d hi, __m512d y) {
  return _mm512_min_pd(hi, y);
}
inline __m512d if_zero(__m512d c, __m512d a, __m512d b) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(c, _mm512_setzero_pd(), _CMP_EQ_OQ), b, a);
}
inline __m512i add(__m512i a, __m512i b) {
  return _mm512_add_epi32(a, b);
}
inline __m512i sub(__m512i a, __m512i b) {
  return _mm512_sub_epi32(a, b);
}
inline __m512i and_(__m512i a, __m512i b) {
  return _mm512_and_si512(a, b);
}
inline __m512i xor_(__m512i a, __m512i b) {
  return _mm512_xor_si512(a, b);
}
template <int N>
inline __m512i shift_right(__m512i a) {
  return _mm512_srli_epi32(a, N);
}
template <int N>
inline __m512i shift_left(__m512i a) {
  return _mm512_slli_epi32(a, N);
}
inline void mul_wide(__m512i a, __m512i b, __m512i& high, __m512i& low) {
  const __m512i even = _mm512_mul_epu32(a, b);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
  low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
inline __m512 float_from_signed(__m512i a) {
  return _mm512_cvtepi32_ps(a);
}
inline __m512 as_float(__m512i a) {
  return _mm512_castsi512_ps(a);
}
inline __m512i as_bits(__m512 a) {
  return _mm512_castps_si512(a);
}
template <>
inline __m512 splat<__m512>(float a) {
  return _mm512_set1_ps(a);
}
template <>
inline __m512d splat<__m512d>(double a) {
  return _mm512_set1_pd(a);
}
template <>
inline __m512i splat<__m512i>(uint32_t a) {
  return _mm512_set1_epi32(static_cast<int>(a));
}
template <>
struct WordOf<__m512> {
  using type = __m512i;
};
template <>
struct FloatOf<__m512i> {
  using type = __m512;
};

template <>
struct Lanes<float> {
  using V = __m512;
  using U = __m512i;
  static constexpr int width = 16;
  static U iota() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static U load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
  // Lanes l and l + width/2 are added, then l and l + width/4, ...
  static float total(V v) {
    return total_of(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const half_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static V load(const bfloat16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void stream(float* p, V v) { _mm512_stream_ps(p, v); }
  static void store(half_t* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves(v)); }
  static void stream(half_t* p, V v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), halves(v)); }
  static void store(bfloat16_t* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bfloats(v)); }
  static void stream(bfloat16_t* p, V v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bfloats(v)); }
  // p[4 l + j] = v[j] of lane l
  static void store_interleaved(float* p, const V v[4]) {
    const V low01 = _mm512_unpacklo_ps(v[0], v[1]), low23 = _mm512_unpacklo_ps(v[2], v[3]);
    const V high01 = _mm512_unpackhi_ps(v[0], v[1]), high23 = _mm512_unpackhi_ps(v[2], v[3]);
    // Lanes 0 4 8 12, 1 5 9 13, 2 6 10 14 and 3 7 11 15, whole; then a transpose of 128-bit quarters.
    const V a = _mm512_shuffle_ps(low01, low23, 0x44), b = _mm512_shuffle_ps(low01, low23, 0xee);
    const V c = _mm512_shuffle_ps(high01, high23, 0x44), d = _mm512_shuffle_ps(high01, high23, 0xee);
    const V ab02 = _mm512_shuffle_f32x4(a, b, 0x88), ab13 = _mm512_shuffle_f32x4(a, b, 0xdd);
    const V cd02 = _mm512_shuffle_f32x4(c, d, 0x88), cd13 = _mm512_shuffle_f32x4(c, d, 0xdd);
    store(p, _mm512_shuffle_f32x4(ab02, cd02, 0x88));
    store(p + 16, _mm512_shuffle_f32x4(ab13, cd13, 0x88));
    store(p + 32, _mm512_shuffle_f32x4(ab02, cd02, 0xdd));
    store(p + 48, _mm512_shuffle_f32x4(ab13, cd13, 0xdd));
  }

 private:
  static __m256i halves(V v) {
    const __m256i nan = _mm256_set1_epi16(0x7e00);
    const __m256i rounded = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m256i sign = _mm256_and_si256(rounded, _mm256_set1_epi16(static_cast<short>(0x8000)));
    return _mm256_mask_blend_epi16(is_nan, rounded, _mm256_or_si256(nan, sign));
  }
  static __m256i bfloats(V v) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, _mm512_set1_epi32(0x7fc0)));
  }
};

template <>
struct Lanes<double> {
  using V = __m512d;
  static constexpr int width = 8;
  static double total(V v) {
    return total_of(_mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1)));
  }
  static V load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, V v) { _mm512_storeu_pd(p, v); }
  static void stream(double* p, V v) { _mm512_stream_pd(p, v); }
};

#elif defined(__AVX2__)

inline __m256 fma_(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline __m256 add(__m256 a, __m256 b) {
  return _mm256_add_ps(a, b);
}
inline __m256 sub(__m256 a, __m256 b) {
  return _mm256_sub_ps(a, b);
}
inline __m256 mul(__m256 a, __m256 b) {
  return _mm256_mul_ps(a, b);
}
inline __m256 div(__m256 a, __m256 b) {
  return _mm256_div_ps(a, b);
}
inline __m256 abs_(__m256 a) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
inline __m256 sqrt_(__m256 a) {
  return _mm256_sqrt_ps(a);
}
inline __m256 at_least(__m256 lo, __m256 y) {
  return _mm256_max_ps(lo, y);  // the second operand is returned when either is NaN
}
inline __m256 at_most(__m256 hi, __m256 y) {
  return _mm256_min_ps(hi, y);
}
inline __m256 if_zero(__m256 c, __m256 a, __m256 b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(c, _mm256_setzero_ps(), _CMP_EQ_OQ));
}
inline __m256d fma_(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
}
inline __m256d add(__m256d a, __m256d b) {
  return _mm256_add_pd(a, b);
}
inline __m256d sub(__m256d a, __m256d b) {
  return _mm256_sub_pd(a, b);
}
inline __m256d mul(__m256d a, __m256d b) {
  return _mm256_mul_pd(a, b);
}
inline __m256d div(__m256d a, __m256d b) {
  return _mm256_div_pd(a, b);
}
inline __m256d abs_(__m256d a) {
  return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a);
}
inline __m256d at_least(__m256d lo, __m256d y) {
  return _mm256_max_pd(lo, y);
}
inline __m256d at_most(__m256d hi, __m256d y) {
  return _mm256_min_pd(hi, y);
}
inline __m256d if_zero(__m256d c, __m256d a, __m256d b) {
  return _mm256_blendv_pd(b, a, _mm256_cmp_pd(c, _mm256_setzero_pd(), _CMP_EQ_OQ));
}
inline __m256i add(__m256i a, __m256i b) {
  return _mm256_add_epi32(a, b);
}
inline __m256i sub(__m256i a, __m256i b) {
  return _mm256_sub_epi32(a, b);
}
inline __m256i and_(__m256i a, __m256i b) {
  return _mm256_and_si256(a, b);
}
inline __m256i xor_(__m256i a, __m256i b) {
  return _mm256_xor_si256(a, b);
}
template <int N>
inline __m256i shift_right(__m256i a) {
  return _mm256_srli_epi32(a, N);
}
template <int N>
inline __m256i shift_left(__m256i a) {
  return _mm256_slli_epi32(a, N);
}
inline void mul_wide(__m256i a, __m256i b, __m256i& high, __m256i& low) {
  const __m256i even = _mm256_mul_epu32(a, b);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
inline __m256 float_from_signed(__m256i a) {
  return _mm256_cvtepi32_ps(a);
}
inline __m256 as_float(__m256i a) {
  return _mm256_castsi256_ps(a);
}
inline __m256i as_bits(__m256 a) {
  return _mm256_castps_si256(a);
}
template <>
inline __m256 splat<__m256>(float a) {
  return _mm256_set1_ps(a);
}
template <>
inline __m256d splat<__m256d>(double a) {
  return _mm256_set1_pd(a);
}
template <>
inline __m256i splat<__m256i>(uint32_t a) {
  return _mm256_set1_epi32(static_cast<int>(a));
}
template <>
struct WordOf<__m256> {
  using type = __m256i;
};
template <>
struct FloatOf<__m256i> {
  using type = __m256;
};

template <>
struct Lanes<float> {
  using V = __m256;
  using U = __m256i;
  static constexpr int width = 8;
  static U iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static U load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static float total(V v) { return total_of(v); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const half_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static V load(const bfloat16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void stream(float* p, V v) { _mm256_stream_ps(p, v); }
  static void store(half_t* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves(v)); }
  static void stream(half_t* p, V v) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), halves(v)); }
  static void store(bfloat16_t* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bfloats(v)); }
  static void stream(bfloat16_t* p, V v) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), bfloats(v)); }
  // p[4 l + j] = v[j] of lane l
  static void store_interleaved(float* p, const V v[4]) {
    const V low01 = _mm256_unpacklo_ps(v[0], v[1]), low23 = _mm256_unpacklo_ps(v[2], v[3]);
    const V high01 = _mm256_unpackhi_ps(v[0], v[1]), high23 = _mm256_unpackhi_ps(v[2], v[3]);
    // Lanes 0 4, 1 5, 2 6 and 3 7, whole
    const V a = _mm256_shuffle_ps(low01, low23, 0x44), b = _mm256_shuffle_ps(low01, low23, 0xee);
    const V c = _mm256_shuffle_ps(high01, high23, 0x44), d = _mm256_shuffle_ps(high01, high23, 0xee);
    store(p, _mm256_permute2f128_ps(a, b, 0x20));
    store(p + 8, _mm256_permute2f128_ps(c, d, 0x20));
    store(p + 16, _mm256_permute2f128_ps(a, b, 0x31));
    store(p + 24, _mm256_permute2f128_ps(c, d, 0x31));
  }

 private:
  static __m128i narrow(__m256i words) {  // the low 16 bits of each word, in order
    const __m256i packed = _mm256_packus_epi32(words, words);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  static __m128i halves(V v) {
    const __m128i rounded = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m128i is_nan =
        narrow(_mm256_srli_epi32(_mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)), 16));
    const __m128i sign = _mm_and_si128(rounded, _mm_set1_epi16(static_cast<short>(0x8000)));
    return _mm_blendv_epi8(rounded, _mm_or_si128(sign, _mm_set1_epi16(0x7e00)), is_nan);
  }
  static __m128i bfloats(V v) {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return narrow(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan));
  }
};

template <>
struct Lanes<double> {
  using V = __m256d;
  static constexpr int width = 4;
  static double total(V v) { return total_of(v); }
  static V load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, V v) { _mm256_storeu_pd(p, v); }
  static void stream(double* p, V v) { _mm256_stream_pd(p, v); }
};

#else  // the portable build: one element at a time

template <>
struct Lanes<float> {
  using V = float;
  using U = uint32_t;
  static constexpr int width = 1;
  static U iota() { return 0; }
  static U load_words(const uint32_t* p) { return *p; }
  static float total(V v) { return v; }
  static V load(const float* p) { return *p; }
  static V load(const half_t* p) { return widen(*p); }
  static V load(const bfloat16_t* p) { return widen(*p); }
  static void store(float* p, V v) { *p = v; }
  static void store(half_t* p, V v) { *p = to_half(v); }
  static void store(bfloat16_t* p, V v) { *p = to_bfloat16(v); }
  static void store_interleaved(float* p, const V v[4]) {
    for (int j = 0; j < 4; ++j) p[j] = v[j];
  }
  template <class S>
  static void stream(S* p, V v) {
    store(p, v);
  }
};

template <>
struct Lanes<double> {
  using V = double;
  static constexpr int width = 1;
  static double total(V v) { return v; }
  static V load(const double* p) { return *p; }
  static void store(double* p, V v) { *p = v; }
  static void stream(double* p, V v) { *p = v; }
};

#endif

// Non-temporal stores are weakly ordered: whoever used stream() calls this before other threads may read.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

#endif  // !__CUDACC__

// ---- one element of any storage dtype, converted --------------------------------------------------

template <class T>
FASTDIFF_HD T load_as(const void* p, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32:
    case DType::c64:  // a complex tensor is handled as its interleaved real and imaginary parts
      return static_cast<T>(static_cast<const float*>(p)[i]);
    case DType::f16:
      return static_cast<T>(widen(static_cast<const half_t*>(p)[i]));
    case DType::bf16:
      return static_cast<T>(widen(static_cast<const bfloat16_t*>(p)[i]));
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(p)[i]);
    case DType::u8:
      return static_cast<T>(static_cast<const uint8_t*>(p)[i]);
    case DType::b8:
      return static_cast<T>(static_cast<const uint8_t*>(p)[i] != 0);
    case DType::i64:
    case DType::i32:
      break;  // never data
  }
  return T(0);
}

template <class T>
FASTDIFF_HD void store_as(void* p, DType dtype, int64_t i, T value) {
  switch (dtype) {
    case DType::f16:
      static_cast<half_t*>(p)[i] = to_half(static_cast<float>(value));
      return;
    case DType::bf16:
      static_cast<bfloat16_t*>(p)[i] = to_bfloat16(static_cast<float>(value));
      return;
    case DType::f64:
      static_cast<double*>(p)[i] = static_cast<double>(value);
      return;
    default:  // f32 and the parts of c64; outputs have no other dtype
      static_cast<float*>(p)[i] = static_cast<float>(value);
  }
}

}  // namespace
}  // namespace fastdiff
