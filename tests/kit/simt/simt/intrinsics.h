// SPDX-License-Identifier: Apache-2.0
// Per-thread intrinsics: rounding, bits, cached loads and stores, and CUDA's global math functions.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "simt/machine.h"

// ---- arithmetic with a stated rounding: the host rounds to nearest even, and nothing is contracted
// ------------------

inline float __fmaf_rn(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline float __fsqrt_rn(float a) {
  return __builtin_sqrtf(a);
}
inline double __fma_rn(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __drcp_rn(double a) {
  return 1.0 / a;
}
inline double __dsqrt_rn(double a) {
  return __builtin_sqrt(a);
}

// ---- conversions
// ----------------------------------------------------------------------------------------------------

namespace simt {

// As the GPU does it: out of range saturates, NaN is zero.
template <class Integer, class Float>
Integer saturated(Float rounded) {
  constexpr auto kMin = std::numeric_limits<Integer>::min();
  constexpr auto kMax = std::numeric_limits<Integer>::max();
  if (!(rounded == rounded)) return 0;
  if (rounded <= static_cast<Float>(kMin)) return kMin;
  if (rounded >= static_cast<Float>(kMax)) return kMax;
  return static_cast<Integer>(rounded);
}

}  // namespace simt

inline float __int2float_rn(int a) {
  return static_cast<float>(a);
}
inline float __uint2float_rn(unsigned a) {
  return static_cast<float>(a);
}
inline float __ll2float_rn(long long a) {
  return static_cast<float>(a);
}
inline float __ull2float_rn(unsigned long long a) {
  return static_cast<float>(a);
}
inline float __double2float_rn(double a) {
  return static_cast<float>(a);
}
inline double __int2double_rn(int a) {
  return a;
}
inline double __uint2double_rn(unsigned a) {
  return a;
}
inline double __ll2double_rn(long long a) {
  return static_cast<double>(a);
}
inline double __ull2double_rn(unsigned long long a) {
  return static_cast<double>(a);
}
inline int __float2int_rn(float a) {
  return simt::saturated<int>(std::nearbyint(a));
}
inline int __float2int_rz(float a) {
  return simt::saturated<int>(std::trunc(a));
}
inline int __float2int_rd(float a) {
  return simt::saturated<int>(std::floor(a));
}
inline int __float2int_ru(float a) {
  return simt::saturated<int>(std::ceil(a));
}
inline unsigned __float2uint_rn(float a) {
  return simt::saturated<unsigned>(std::nearbyint(a));
}
inline unsigned __float2uint_rz(float a) {
  return simt::saturated<unsigned>(std::trunc(a));
}
inline int __double2int_rn(double a) {
  return simt::saturated<int>(std::nearbyint(a));
}
inline long long __double2ll_rn(double a) {
  return simt::saturated<long long>(std::nearbyint(a));
}

inline unsigned __float_as_uint(float a) {
  return std::bit_cast<unsigned>(a);
}
inline int __float_as_int(float a) {
  return std::bit_cast<int>(a);
}
inline float __uint_as_float(unsigned a) {
  return std::bit_cast<float>(a);
}
inline float __int_as_float(int a) {
  return std::bit_cast<float>(a);
}
inline long long __double_as_longlong(double a) {
  return std::bit_cast<long long>(a);
}
inline double __longlong_as_double(long long a) {
  return std::bit_cast<double>(a);
}
inline int __double2loint(double a) {
  return static_cast<int>(std::bit_cast<uint64_t>(a));
}
inline int __double2hiint(double a) {
  return static_cast<int>(std::bit_cast<uint64_t>(a) >> 32);
}
inline double __hiloint2double(int hi, int lo) {
  return std::bit_cast<double>(uint64_t{static_cast<unsigned>(hi)} << 32 | static_cast<unsigned>(lo));
}

// ---- integers
// -------------------------------------------------------------------------------------------------------

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>((int64_t{a} * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((static_cast<__int128>(a) * b) >> 64);
}
inline int __popc(unsigned a) {
  return std::popcount(a);
}
inline int __popcll(unsigned long long a) {
  return std::popcount(a);
}
inline int __clz(int a) {
  return std::countl_zero(static_cast<unsigned>(a));
}
inline int __clzll(long long a) {
  return std::countl_zero(static_cast<unsigned long long>(a));
}
inline int __ffs(int a) {
  return __builtin_ffs(a);
}
inline int __ffsll(long long a) {
  return __builtin_ffsll(a);
}
inline unsigned __brev(unsigned a) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (a >> bit & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{hi} << 32 | lo) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((uint64_t{hi} << 32 | lo) >> (shift & 31));
}
// Byte i of the result is byte (selector's nibble i) of {b, a}; bit 3 of the nibble replicates that byte's
// sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 0xfu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7u))) & 0xffu;
    if (nibble & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __dp4a(int a, int b, int c) {
  auto sum = static_cast<unsigned>(c);
  for (int i = 0; i < 4; ++i)
    sum += static_cast<unsigned>(static_cast<signed char>(a >> (8 * i)) *
                                 static_cast<signed char>(b >> (8 * i)));
  return static_cast<int>(sum);
}

// ---- memory: cache hints change no value
// ----------------------------------------------------------------------------

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
T __ldlu(const T* p) {
  return *p;
}
template <class T>
T __ldcv(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
void __stwb(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
void __stwt(T* p, std::type_identity_t<T> value) {
  *p = value;
}

inline bool __isShared(const void* p) {
  return simt::machine.shared.holds(p, 1);
}

// ---- math: the fast forms are the accurate ones here, so compare what uses them with a tolerance
// ---------------------

inline float __expf(float a) {
  return std::exp(a);
}
inline float __exp10f(float a) {
  return std::pow(10.0f, a);
}
inline float __logf(float a) {
  return std::log(a);
}
inline float __log2f(float a) {
  return std::log2(a);
}
inline float __sinf(float a) {
  return std::sin(a);
}
inline float __cosf(float a) {
  return std::cos(a);
}
inline float __powf(float a, float b) {
  return std::pow(a, b);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __saturatef(float a) {
  return a > 0.0f ? std::min(a, 1.0f) : 0.0f;
}
inline float __frsqrt_rn(float a) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
}
inline float rsqrtf(float a) {
  return __frsqrt_rn(a);
}
inline double rsqrt(double a) {
  return 1.0 / std::sqrt(a);
}

using std::max;
using std::min;

[[noreturn]] inline void __trap() {
  simt::machine.fail("the kernel called __trap()");
}
inline long long clock64() {
  return 0;
}
