// SPDX-License-Identifier: Apache-2.0
// The registers of AVX2 with FMA, in the vocabulary of lanes.h, which includes this file where the compiler
// targets them.
#pragma once

namespace fastdiff {
namespace {

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
inline __m256 unless_below(__m256 limit, __m256 x, __m256 y) {
  return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), y);
}
inline __m256 if_new_highest(__m256 s, __m256 best, __m256 a, __m256 b) {
  const __m256 is_number = _mm256_cmp_ps(best, best, _CMP_ORD_Q);
  return _mm256_blendv_ps(b, a, _mm256_and_ps(is_number, _mm256_cmp_ps(s, best, _CMP_NLE_UQ)));
}
inline __m256d if_new_highest(__m256d s, __m256d best, __m256d a, __m256d b) {
  const __m256d is_number = _mm256_cmp_pd(best, best, _CMP_ORD_Q);
  return _mm256_blendv_pd(b, a, _mm256_and_pd(is_number, _mm256_cmp_pd(s, best, _CMP_NLE_UQ)));
}
inline __m256 where_bits(uint32_t word, __m256 a, __m256 b) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(word)), bit);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
}
inline __m256d where_bits(uint32_t word, __m256d a, __m256d b) {
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(word), bit);
  return _mm256_blendv_pd(b, a, _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, bit)));
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
inline void deinterleave(__m256 a, __m256 b, __m256& even, __m256& odd) {
  const __m256d evens = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d odds = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  even = _mm256_castpd_ps(_mm256_permute4x64_pd(evens, 0xd8));
  odd = _mm256_castpd_ps(_mm256_permute4x64_pd(odds, 0xd8));
}
inline void interleave(__m256 a, __m256 b, __m256& low, __m256& high) {
  const __m256 first = _mm256_unpacklo_ps(a, b), second = _mm256_unpackhi_ps(a, b);
  low = _mm256_permute2f128_ps(first, second, 0x20);
  high = _mm256_permute2f128_ps(first, second, 0x31);
}
inline void deinterleave(__m256d a, __m256d b, __m256d& even, __m256d& odd) {
  even = _mm256_permute4x64_pd(_mm256_unpacklo_pd(a, b), 0xd8);
  odd = _mm256_permute4x64_pd(_mm256_unpackhi_pd(a, b), 0xd8);
}
inline void interleave(__m256d a, __m256d b, __m256d& low, __m256d& high) {
  const __m256d first = _mm256_unpacklo_pd(a, b), second = _mm256_unpackhi_pd(a, b);
  low = _mm256_permute2f128_pd(first, second, 0x20);
  high = _mm256_permute2f128_pd(first, second, 0x31);
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

}  // namespace
}  // namespace fastdiff
