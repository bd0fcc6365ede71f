// SPDX-License-Identifier: Apache-2.0
// The registers of AVX-512, in the vocabulary of lanes.h, which includes this file where the compiler targets
// them.
#pragma once

namespace fastdiff {
namespace {

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
inline __m512 unless_below(__m512 limit, __m512 x, __m512 y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), y);
}
inline __m512 if_new_highest(__m512 s, __m512 best, __m512 a, __m512 b) {
  const __mmask16 is_number = _mm512_cmp_ps_mask(best, best, _CMP_ORD_Q);
  return _mm512_mask_blend_ps(_mm512_mask_cmp_ps_mask(is_number, s, best, _CMP_NLE_UQ), b, a);
}
inline __m512d if_new_highest(__m512d s, __m512d best, __m512d a, __m512d b) {
  const __mmask8 is_number = _mm512_cmp_pd_mask(best, best, _CMP_ORD_Q);
  return _mm512_mask_blend_pd(_mm512_mask_cmp_pd_mask(is_number, s, best, _CMP_NLE_UQ), b, a);
}
inline __m512 where_bits(uint32_t word, __m512 a, __m512 b) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(word), b, a);
}
inline __m512d where_bits(uint32_t word, __m512d a, __m512d b) {
  return _mm512_mask_blend_pd(static_cast<__mmask8>(word), b, a);
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
inline void deinterleave(__m512 a, __m512 b, __m512& even, __m512& odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = _mm512_permutex2var_ps(a, evens, b);
  odd = _mm512_permutex2var_ps(a, _mm512_or_si512(evens, _mm512_set1_epi32(1)), b);
}
inline void interleave(__m512 a, __m512 b, __m512& low, __m512& high) {
  const __m512i lows = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  low = _mm512_permutex2var_ps(a, lows, b);
  high = _mm512_permutex2var_ps(a, _mm512_add_epi32(lows, _mm512_set1_epi32(8)), b);
}
inline void deinterleave(__m512d a, __m512d b, __m512d& even, __m512d& odd) {
  const __m512i evens = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  even = _mm512_permutex2var_pd(a, evens, b);
  odd = _mm512_permutex2var_pd(a, _mm512_or_si512(evens, _mm512_set1_epi64(1)), b);
}
inline void interleave(__m512d a, __m512d b, __m512d& low, __m512d& high) {
  const __m512i lows = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  low = _mm512_permutex2var_pd(a, lows, b);
  high = _mm512_permutex2var_pd(a, _mm512_add_epi64(lows, _mm512_set1_epi64(4)), b);
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

}  // namespace
}  // namespace fastdiff
