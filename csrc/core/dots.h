// SPDX-License-Identifier: Apache-2.0
// Dot products of four int8, in each int32 lane of a register; exact. For CPU files only.
//
// The first factors are bytes that all lanes share. As stored, they are x + kByteOffset: the instruction of
// VNNI wants one factor without a sign. Where there is only vpmaddubsw, whose sums of two products must stay
// within int16, signs are moved to the second factors, which therefore must not be -128; first factors from 0
// to 127 (kSigned = false) need none of this anywhere.
#pragma once

#include "core/lanes.h"

namespace fastdiff {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
template <bool kSigned>
inline constexpr int kByteOffset = kSigned ? 128 : 0;
#else
template <bool kSigned>
inline constexpr int kByteOffset = 0;
#endif

#if defined(__AVX512F__)

struct Dots {
  using V = __m512i;
  static constexpr int width = 16;

  static V zero() { return _mm512_setzero_si512(); }
  static V load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, V v) { _mm512_storeu_si512(p, v); }
  static V times(V a, V b) { return _mm512_mullo_epi32(a, b); }

  template <bool kSigned>
  struct Shared {
    V bytes;
    __mmask64 negative;
  };
  template <bool kSigned>
  static Shared<kSigned> share(const uint8_t* four) {
    int word;
    std::memcpy(&word, four, 4);
    const V bytes = _mm512_set1_epi32(word);
#if !defined(__AVX512VNNI__)
    if constexpr (kSigned) return {_mm512_abs_epi8(bytes), _mm512_movepi8_mask(bytes)};
#endif
    return {bytes, 0};
  }
  template <bool kSigned>
  static V dot(V sum, const Shared<kSigned>& x, V w) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sum, x.bytes, w);
#else
    if constexpr (kSigned) w = _mm512_mask_sub_epi8(w, x.negative, zero(), w);
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

  template <bool kSigned>
  struct Shared {
    V bytes, magnitudes;
  };
  template <bool kSigned>
  static Shared<kSigned> share(const uint8_t* four) {
    int word;
    std::memcpy(&word, four, 4);
    const V bytes = _mm256_set1_epi32(word);
    return {bytes, _mm256_abs_epi8(bytes)};
  }
  template <bool kSigned>
  static V dot(V sum, const Shared<kSigned>& x, V w) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, x.bytes, w);
#else
    const V pairs = kSigned ? _mm256_maddubs_epi16(x.magnitudes, _mm256_sign_epi8(w, x.bytes))
                            : _mm256_maddubs_epi16(x.bytes, w);
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

}  // namespace
}  // namespace fastdiff
