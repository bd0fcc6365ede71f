// SPDX-License-Identifier: Apache-2.0
// The emulated twins of csrc/core/ptx.cuh, with PTX's fragment layouts. Contracts are stated there.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "simt/machine.h"
#include "simt/vector_types.h"

namespace simt {

inline void check_aligned(const char* what, const void* p, int bytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) != 0)
    machine.fail(text("%s %p is not aligned to %d bytes", what, p, bytes), &site);
}

inline void check_shared(const char* what, const void* p, size_t bytes, const Site& site) {
  if (!machine.shared.holds(p, bytes))
    machine.fail(text("%s %p is not %zu bytes of this block's shared memory", what, p, bytes), &site);
}

// fp16 bits to float: the significand as an integer, scaled.
inline float float_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f;
  const int fraction = bits & 0x3ff;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                  : std::ldexp(static_cast<float>(fraction | 0x400), exponent - 25);
  if (exponent == 0x1f) magnitude = fraction == 0 ? HUGE_VALF : std::nanf("");
  return bits & 0x8000 ? -magnitude : magnitude;
}
inline float float_of_bfloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// The i-th element of a 32-bit register that holds several.
template <class Element>
Element element(uint32_t packed, int i) {
  return static_cast<Element>(packed >> (8 * static_cast<int>(sizeof(Element)) * i));
}

// One lane's part of d += A B.
template <class Sum>
struct Fragments {
  Sum (&d)[4];
  const uint32_t (&a)[4];
  const uint32_t (&b)[2];
};

// Element: what A and B hold; Wide: the type of exact products and their sum. One register holds kPack
// elements, and A is [16, 8 kPack], B [8 kPack, 8]. NOTE: the sum of a column is rounded once. The tensor
// cores align and truncate: expect fp32 results to differ in the last bits.
template <class Element, class Wide, class Sum, class Widen>
void matrix_multiply(const char* name, Fragments<Sum> mine, const Site& site, Widen) {
  machine.collective(name, 0xffffffffu, mine, site, [](Fragments<Sum>** lanes, unsigned) {
    constexpr int kPack = 4 / sizeof(Element);
    constexpr int kRows = 16, kColumns = 8, kDepth = 8 * kPack;
    Wide a[kRows][kDepth], b[kDepth][kColumns];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < kPack; ++e) {
        for (int i = 0; i < 4; ++i)
          a[g + 8 * (i % 2)][kPack * (t + 4 * (i / 2)) + e] = Widen{}(element<Element>(lanes[lane]->a[i], e));
        for (int i = 0; i < 2; ++i)
          b[kPack * (t + 4 * i) + e][g] = Widen{}(element<Element>(lanes[lane]->b[i], e));
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        Wide sum = static_cast<Wide>(lanes[lane]->d[i]);
        for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
        lanes[lane]->d[i] = static_cast<Sum>(sum);
      }
    }
  });
}

struct MatrixRows {
  uint4 row;  // what this lane read: 8 elements
  uint32_t (&r)[4];
};

template <bool kTranspose>
void load_matrices(const char* name, uint32_t (&r)[4], const void* row, const Site& site) {
  check_aligned("ldmatrix: the row", row, 16, site);
  check_shared("ldmatrix: the row", row, 16, site);
  MatrixRows mine{*static_cast<const uint4*>(row), r};
  machine.collective(name, 0xffffffffu, mine, site, [](MatrixRows** lanes, unsigned) {
    const auto at = [&](int matrix, int i, int j) {
      uint16_t row_elements[8];
      std::memcpy(row_elements, &lanes[8 * matrix + i]->row, sizeof(row_elements));
      return uint32_t{row_elements[j]};
    };
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, t = 2 * (lane % 4);
      for (int matrix = 0; matrix < 4; ++matrix)
        lanes[lane]->r[matrix] = kTranspose ? at(matrix, t, g) | at(matrix, t + 1, g) << 16
                                            : at(matrix, g, t) | at(matrix, g, t + 1) << 16;
    }
  });
}

}  // namespace simt

namespace fastdiff::ptx {

// Counted from a page, as the hardware counts from the beginning of shared memory.
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - simt::machine.shared.first_page());
}

// The source is read now. The destination gets NaN bytes now and the data when the group is waited for, or,
// by the toss of a coin, at once: a kernel that reads too early and one that overwrites too early both show.
template <int kBytes>
__attribute__((noinline)) void cp_async(void* shared, const void* global, int valid = kBytes,
                                        simt::Site site = simt::Site::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::check_aligned("cp.async: the destination", shared, kBytes, site);
  simt::check_shared("cp.async: the destination", shared, kBytes, site);
  simt::check_aligned("cp.async: the source", global, kBytes, site);
  if (valid < 0 || valid > kBytes)
    simt::machine.fail(simt::text("cp.async: %d of %d bytes", valid, kBytes), &site);

  simt::Thread& me = *simt::machine.self;
  simt::AsyncCopy copy{shared, kBytes, {}, me.copy_group, __builtin_return_address(0)};
  std::memcpy(copy.data, global, static_cast<size_t>(valid));
  if (simt::race_observer != nullptr) {
    simt::race_observer->copy_issued(shared, kBytes, copy.code);
  } else if (simt::machine.random.coin()) {
    std::memcpy(shared, copy.data, kBytes);
    return;
  }
  std::memset(shared, simt::kPoison, kBytes);
  me.copies.push_back(copy);
}

inline void cp_async_commit() {
  ++simt::machine.self->copy_group;
}

template <int kPending>
void cp_async_wait() {
  simt::Thread& me = *simt::machine.self;
  simt::machine.land_copies(me, me.copy_group - kPending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, simt::Site site = simt::Site::current()) {
  simt::load_matrices<false>("ldmatrix_x4", r, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, simt::Site site = simt::Site::current()) {
  simt::load_matrices<true>("ldmatrix_x4_trans", r, row, site);
}

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             simt::Site site = simt::Site::current()) {
  simt::matrix_multiply<uint16_t, double, float>(
      "mma_m16n8k16_f16", {d, a, b}, site, [](uint16_t bits) -> double { return simt::float_of_half(bits); });
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              simt::Site site = simt::Site::current()) {
  simt::matrix_multiply<uint16_t, double, float>(
      "mma_m16n8k16_bf16", {d, a, b}, site,
      [](uint16_t bits) -> double { return simt::float_of_bfloat(bits); });
}
inline void mma_m16n8k32_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            simt::Site site = simt::Site::current()) {
  simt::matrix_multiply<int8_t, int64_t, int>("mma_m16n8k32_s8", {d, a, b}, site,
                                              [](int8_t value) -> int64_t { return value; });
}

inline uint32_t pack_f16(float low, float high) {
  return to_half(low).bits | uint32_t{to_half(high).bits} << 16;
}
inline uint32_t pack_bf16(float low, float high) {
  return to_bfloat16(low).bits | uint32_t{to_bfloat16(high).bits} << 16;
}
// NOTE: exact here.
inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < FLT_MIN ? 0.0f : y;
}

}  // namespace fastdiff::ptx
