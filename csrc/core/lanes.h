// SPDX-License-Identifier: Apache-2.0
// Lanes: one vocabulary for a single float and for a SIMD register. With its two halves for AVX the only
// place with intrinsics.
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
#pragma GCC diagnostic ignored "-Wuninitialized"
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

// where not x < limit (where x is NaN too): y, else 0
template <class T>
FASTDIFF_HD T unless_below(T limit, T x, T y) {
  return x < limit ? T(0) : y;
}
// where s is above best, or the first NaN of both: a, else b
template <class T>
FASTDIFF_HD T if_new_highest(T s, T best, T a, T b) {
  return !(s <= best) && best == best ? a : b;
}
// lane l: a where bit l of the word is set, else b
template <class T>
FASTDIFF_HD T where_bits(uint32_t word, T a, T b) {
  return word & 1u ? a : b;
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

// Elements 0, 2, 4, ... and 1, 3, 5, ... of a and then b; and back: a0 b0 a1 b1 ... in two registers.
template <class T>
FASTDIFF_HD void deinterleave(T a, T b, T& even, T& odd) {
  even = a;
  odd = b;
}
template <class T>
FASTDIFF_HD void interleave(T a, T b, T& low, T& high) {
  low = a;
  high = b;
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

}  // namespace
}  // namespace fastdiff

// Kernels whose rows are short or that read at every offset define FASTDIFF_SHORT_LANES: a register of
// AVX-512 is a cache line, and read at any offset but 0 it is two. They keep its other advantage, 32
// registers.
#if defined(__AVX512F__) && !defined(FASTDIFF_SHORT_LANES)
#include "core/lanes_avx512.h"
#elif defined(__AVX2__)
#include "core/lanes_avx2.h"
#endif

namespace fastdiff {
namespace {

#if !defined(__AVX2__)  // the portable build: one element at a time

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

// The same, loaded once: a compiler that sees where v is used may read memory again for each use.
template <class V>
[[gnu::always_inline]] inline V in_register(V v) {
#if defined(__AVX512VL__)
  asm("" : "+v"(v));
#elif defined(__AVX2__)
  asm("" : "+x"(v));
#endif
  return v;
}

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
    case DType::i8:
      return static_cast<T>(static_cast<const int8_t*>(p)[i]);
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
