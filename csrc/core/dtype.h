// SPDX-License-Identifier: Apache-2.0
// Storage dtypes, and the bit arithmetic that rounds to 16-bit floats identically on every backend.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define FASTDIFF_HD __host__ __device__ __forceinline__
#else
#define FASTDIFF_HD inline
#endif

namespace fastdiff {

enum class DType : int8_t { f32, f16, bf16, f64, c64, u8, b8, i64, i32, i8 };

constexpr const char* name(DType t) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "float64", "complex64",
                                   "uint8",   "bool",    "int64",    "int32",   "int8"};
  return names[static_cast<int>(t)];
}

FASTDIFF_HD constexpr int size_of(DType t) {
  switch (t) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f64:
    case DType::c64:
    case DType::i64:
      return 8;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::u8:
    case DType::b8:
    case DType::i8:
      return 1;
  }
  return 0;
}

// Kernels see a complex tensor as its interleaved real and imaginary parts.
FASTDIFF_HD constexpr DType part_of(DType t) {
  return t == DType::c64 ? DType::f32 : t;
}

constexpr bool is_real_float(DType t) {
  return t == DType::f32 || t == DType::f16 || t == DType::bf16 || t == DType::f64;
}

// 16-bit floats are storage only: they are widened on load and rounded once, at the store.
struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

// Every anonymous namespace in csrc/core keeps code that was compiled with AVX flags out of other
// translation units: the linker must never pick an AVX copy of a shared inline function.
namespace {

// std::bit_cast is not callable from device code in every supported nvcc; __builtin_bit_cast is.
template <class To, class From>
FASTDIFF_HD To bits_as(From from) {
  return __builtin_bit_cast(To, from);
}

FASTDIFF_HD float widen(bfloat16_t x) {
  return bits_as<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Round to nearest even; every NaN becomes the quiet NaN 0x7fc0, as in PyTorch.
FASTDIFF_HD bfloat16_t to_bfloat16(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

FASTDIFF_HD float widen(half_t x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u)
    return bits_as<float>(sign | 0x7f800000u | (rest << 13) | (rest > 0x7c00u ? 0x400000u : 0u));
  // 2^112 re-biases the exponent; the product is exact and also normalises the subnormals of binary16.
  const float magnitude = bits_as<float>(rest << 13) * bits_as<float>(0x77800000u);
  return bits_as<float>(sign | bits_as<uint32_t>(magnitude));
}

// Round to nearest even, overflow to infinity, subnormals kept; a NaN becomes the quiet NaN 0x7e00 of its
// sign.
FASTDIFF_HD half_t to_half(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // >= 2^16, infinity too
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 makes the float unit do the rounding at 2^-24
    const float shifted = bits_as<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_as<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign |
                                (rounded >> 13))};  // a carry out of the mantissa reaches infinity by itself
}

}  // namespace
}  // namespace fastdiff
