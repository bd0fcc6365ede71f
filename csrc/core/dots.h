// SPDX-License-Identifier: Apache-2.0
// Dot products of four int8, in each int32 lane of a register; exact. For CPU files only.
//
// The first factors are bytes that all lanes share. As stored, they are x + kByteOffset: the instruction of
// VNNI wants one factor without a sign. Where there is only vpmaddubsw, which wants one as well and whose
// sums of two products must stay within int16, x comes as its magnitude and, kSignsAt bytes behind, its sign,
// 0 or -1, which all bits of w are exchanged by: |x| (-1 - w) = x w - |x|, so that sums begin with the sum of
// |x| over negative x. One instruction instead of the three of |x| and the sign of w, and not one of the two
// ports that multiply. First factors from 0 to 127 (kSigned = false) need none of this anywhere.
#pragma once

#include "core/lanes.h"

namespace fastdiff {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
inline constexpr bool kHasByteDots = true;
#else
inline constexpr bool kHasByteDots = false;
#endif

template <bool kSigned>
inline constexpr int kByteOffset = kSigned && kHasByteDots ? 128 : 0;
template <bool kSigned>
inline constexpr bool kMovesSigns = kSigned && !kHasByteDots;
inline constexpr int kSignsAt = 8192;

// A first factor, for all lanes.
template <class V>
struct Shared {
  V bytes, signs;
};

#if defined(__AVX512F__)

struct Dots {
  using V = __m512i;
  static constexpr int width = 16;

  static V zero() { return _mm512_setzero_si512(); }
  static V load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, V v) { _mm512_storeu_si512(p, v); }
  static V times(V a, V b) { return _mm512_mullo_epi32(a, b); }

  static V broadcast(const uint8_t* four) {
    int word;
    std::memcpy(&word, four, 4);
    return _mm512_set1_epi32(word);
  }
  template <bool kSigned>
  static V dot(V sum, const Shared<V>& x, V w) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sum, x.bytes, w);
#else
    if constexpr (kSigned) w = _mm512_xor_si512(w, x.signs);
    const V pairs = _mm512_maddubs_epi16(x.bytes, w);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
  }

  // The lowest byte of each lane.
  static void store_bytes(void* p, V v) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
};

#elif defined(__AVX2__)

struct Dots {
  using V = __m256i;
  static constexpr int width = 8;

  static V zero() { return _mm256_setzero_si256(); }
  static V load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, V v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static V times(V a, V b) { return _mm256_mullo_epi32(a, b); }

  static V broadcast(const uint8_t* four) {
    int word;
    std::memcpy(&word, four, 4);
    return _mm256_set1_epi32(word);
  }
  template <bool kSigned>
  static V dot(V sum, const Shared<V>& x, V w) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, x.bytes, w);
#else
    if constexpr (kSigned) w = _mm256_xor_si256(w, x.signs);
    const V pairs = _mm256_maddubs_epi16(x.bytes, w);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }

  static void store_bytes(void* p, V v) {
    const V order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                     0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const V quarters = _mm256_shuffle_epi8(v, order);
    const __m128i bytes =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(quarters), _mm256_extracti128_si256(quarters, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), bytes);
  }
};

#else

struct Dots {
  using V = uint32_t;
  static constexpr int width = 1;

  static V load(const void* p) {
    V v;
    std::memcpy(&v, p, 4);
    return v;
  }
  static void store(void* p, V v) { std::memcpy(p, &v, 4); }
  static V times(V a, V b) { return a * b; }
  static void store_bytes(void* p, V v) { *static_cast<uint8_t*>(p) = static_cast<uint8_t>(v); }
};

#endif

#if defined(__AVX2__)

template <bool kSigned>
Shared<Dots::V> share(const uint8_t* four) {
  if constexpr (kMovesSigns<kSigned>) return {Dots::broadcast(four), Dots::broadcast(four + kSignsAt)};
  return {Dots::broadcast(four), Dots::zero()};
}

// 64 signed bytes as magnitudes and signs; returns the sum of the magnitudes of those below 0.
inline int32_t move_signs(const uint8_t* x, uint8_t* magnitudes) {
  int32_t sum = 0;
  for (int k = 0; k < 64; k += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k));
    const __m256i zero = _mm256_setzero_si256(), signs = _mm256_cmpgt_epi8(zero, bytes);
    const __m256i size = _mm256_abs_epi8(bytes);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(magnitudes + k), size);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(magnitudes + kSignsAt + k), signs);
    const __m256i sums = _mm256_sad_epu8(_mm256_and_si256(size, signs), zero);
    const __m128i halves = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum += _mm_cvtsi128_si32(halves) + _mm_extract_epi32(halves, 2);
  }
  return sum;
}

#endif

}  // namespace
}  // namespace fastdiff
