// SPDX-License-Identifier: Apache-2.0
// The tiles of AMX: products of matrices of bfloat16 with sums in float32, and of bytes with sums in int32.
//
// A tile is 16 rows of 64 bytes. Products of two bfloat16 are exact; the unit adds pairs of them in an order
// of its own and takes subnormal numbers for 0. For *_amx.cpp files only: the compiler has to target AMX.
#pragma once

#include <atomic>
#include <cstring>

#include "core/lanes.h"

namespace fastdiff {
namespace {

inline constexpr int kTile = 16;      // rows, and elements of 4 bytes in each
inline constexpr int kTileStep = 32;  // elements of bfloat16 in a row

// Eight tiles, all whole. A constant, because the compiler does not know that all of it is read.
struct alignas(64) TileSetup {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileSetup kTileSetup;

// A thread's tiles, from the one call to the other; not by a destructor, which would bring the machinery of
// exceptions into a unit that throws none. Others who use tiles in this thread set them up anew as well.
inline void set_up_tiles() {
  _tile_loadconfig(&kTileSetup);
}
inline void release_tiles() {
  _tile_release();
}

// Two neighbours along the sum, the first in the low half.
using BfloatPair = uint32_t;

// C [16 kRows][16 kColumns] (+)= A B with A [16 kRows][32 steps], B [16 steps][16 kColumns] pairs; rows are
// so many elements apart.
template <bool kKept, int kRows, int kColumns>
[[gnu::always_inline]] inline void tile_product(const bfloat16_t* a, int64_t a_row, const BfloatPair* b,
                                                int64_t b_row, int steps, float* c, int64_t c_row) {
  constexpr bool kTwoRows = kRows == 2, kTwoColumns = kColumns == 2;
  const int64_t a_bytes = 2 * a_row, b_bytes = 4 * b_row, c_bytes = 4 * c_row;
  if constexpr (kKept) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (kTwoColumns) _tile_loadd(1, c + kTile, c_bytes);
    if constexpr (kTwoRows) _tile_loadd(2, c + kTile * c_row, c_bytes);
    if constexpr (kTwoRows && kTwoColumns) _tile_loadd(3, c + kTile * c_row + kTile, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kTwoColumns) _tile_zero(1);
    if constexpr (kTwoRows) _tile_zero(2);
    if constexpr (kTwoRows && kTwoColumns) _tile_zero(3);
  }
  for (int s = 0; s < steps; ++s, a += kTileStep, b += kTile * b_row) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, b, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoColumns) {
      _tile_loadd(7, b + kTile, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      _tile_loadd(5, a + kTile * a_row, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (kTwoColumns) _tile_stored(1, c + kTile, c_bytes);
  if constexpr (kTwoRows) _tile_stored(2, c + kTile * c_row, c_bytes);
  if constexpr (kTwoRows && kTwoColumns) _tile_stored(3, c + kTile * c_row + kTile, c_bytes);
}

// The same for any number of tiles downwards.
template <bool kKept, int kColumns>
void tile_products(const bfloat16_t* a, int64_t a_row, const BfloatPair* b, int64_t b_row, int steps,
                   float* c, int64_t c_row, int row_tiles) {
  // The compiler does not know what memory tile instructions read and write.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  constexpr int kMost = kColumns < 2 ? kColumns : 2;
  for (; row_tiles > 0; row_tiles -= 2, a += 2 * kTile * a_row, c += 2 * kTile * c_row)
    for (int n = 0; n < kColumns; n += kMost) {
      const BfloatPair* const of_b = b + n * kTile;
      float* const of_c = c + n * kTile;
      if (row_tiles > 1) {
        tile_product<kKept, 2, kMost>(a, a_row, of_b, b_row, steps, of_c, c_row);
      } else {
        tile_product<kKept, 1, kMost>(a, a_row, of_b, b_row, steps, of_c, c_row);
      }
    }
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

// ---- whole tiles one after another ------------------------------------------------------------------

// The instruction that multiplies tiles of these elements.
template <class Element>
inline constexpr bool kIsBytes = sizeof(Element) == 1;

// Where tiles lie, in bytes: rows `row` apart, one tile after the other `step`; if `starts` is not null, in
// runs of `run` tiles, of which it has the first.
struct TileLayout {
  int64_t row = 64, step = 1024;
  const int64_t* starts = nullptr;
  int64_t run = 0;
};

template <class Element, bool kKept, bool kTwoRows, bool kTwoColumns, class Meanwhile>
[[gnu::always_inline]] inline void whole_product(const char* a, const char* a_next, const TileLayout& of_a,
                                                 const char* b, const char* b_next, int64_t steps, void* sums,
                                                 int64_t c_row, const Meanwhile& meanwhile) {
  constexpr int64_t kBytes = 1024, kRow = 64;
  const int64_t c_bytes = 4 * c_row;
  char *const c = static_cast<char*>(sums), *const next = c + kTile * c_bytes;
  if constexpr (kKept) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (kTwoColumns) _tile_loadd(1, c + kRow, c_bytes);
    if constexpr (kTwoRows) _tile_loadd(2, next, c_bytes);
    if constexpr (kTwoRows && kTwoColumns) _tile_loadd(3, next + kRow, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kTwoColumns) _tile_zero(1);
    if constexpr (kTwoRows) _tile_zero(2);
    if constexpr (kTwoRows && kTwoColumns) _tile_zero(3);
  }
  const int64_t* start = of_a.starts;
  int64_t left = start != nullptr ? 0 : steps, at = 0;  // of a run
  for (int64_t s = 0; s < steps; ++s, at += of_a.step, --left) {
    if (left == 0) left = of_a.run, at = *start++;
    _tile_loadd(4, a + at, of_a.row);
    _tile_loadd(6, b + s * kBytes, kRow);
    if constexpr (kTwoColumns) _tile_loadd(7, b_next + s * kBytes, kRow);
    if constexpr (kTwoRows) _tile_loadd(5, a_next + at, of_a.row);
    if constexpr (kIsBytes<Element>) {
      _tile_dpbssd(0, 4, 6);
      if constexpr (kTwoColumns) _tile_dpbssd(1, 4, 7);
      if constexpr (kTwoRows) _tile_dpbssd(2, 5, 6);
      if constexpr (kTwoRows && kTwoColumns) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kTwoColumns) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwoRows) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
    }
    meanwhile();
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (kTwoColumns) _tile_stored(1, c + kRow, c_bytes);
  if constexpr (kTwoRows) _tile_stored(2, next, c_bytes);
  if constexpr (kTwoRows && kTwoColumns) _tile_stored(3, next + kRow, c_bytes);
}

// Takes no time.
struct Nothing {
  void operator()() const {}
};

// C [16 or 32][16 or 32] (+)= A B of signed bytes or bfloat16, in whole tiles one after another: A
// [steps][16][64 bytes] and another 16 rows, or null; B [steps][16][16][4 bytes] and another 16 columns, or
// null. C is int32 or float. meanwhile() is called after each step: vector instructions that take no longer
// than its tiles are free there. It must not touch C. A may lie otherwise, as `of_rows` has it.
template <class Element, bool kKept = false, class Meanwhile = Nothing>
void whole_products(const void* rows, const void* next_rows, const void* columns, const void* next_columns,
                    int64_t steps, void* c, int64_t c_row, const Meanwhile& meanwhile = {},
                    const TileLayout& of_rows = {}) {
  const auto* const a = static_cast<const char*>(rows);
  const auto* const a_next = static_cast<const char*>(next_rows);
  const auto* const b = static_cast<const char*>(columns);
  const auto* const b_next = static_cast<const char*>(next_columns);
  // The compiler does not know what memory tile instructions read and write.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (a_next != nullptr && b_next != nullptr) {
    whole_product<Element, kKept, true, true>(a, a_next, of_rows, b, b_next, steps, c, c_row, meanwhile);
  } else if (a_next != nullptr) {
    whole_product<Element, kKept, true, false>(a, a_next, of_rows, b, b_next, steps, c, c_row, meanwhile);
  } else if (b_next != nullptr) {
    whole_product<Element, kKept, false, true>(a, a_next, of_rows, b, b_next, steps, c, c_row, meanwhile);
  } else {
    whole_product<Element, kKept, false, false>(a, a_next, of_rows, b, b_next, steps, c, c_row, meanwhile);
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

// ---- the layouts that tiles want -------------------------------------------------------------------

// 16 rows of 16 words.
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
    }
  // Quarter q of x[4 i + j]: rows 4 i ... 4 i + 3 of column 4 q + j.
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(x[j], x[j + 4], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(x[j], x[j + 4], 0xdd);
    const __m512i low_end = _mm512_shuffle_i32x4(x[j + 8], x[j + 12], 0x88);
    const __m512i high_end = _mm512_shuffle_i32x4(x[j + 8], x[j + 12], 0xdd);
    y[j] = _mm512_shuffle_i32x4(low, low_end, 0x88);
    y[j + 8] = _mm512_shuffle_i32x4(low, low_end, 0xdd);
    y[j + 4] = _mm512_shuffle_i32x4(high, high_end, 0x88);
    y[j + 12] = _mm512_shuffle_i32x4(high, high_end, 0xdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

// [16][16] of 4 bytes, rows so many of them apart.
inline void transpose_words(const void* from, int64_t from_row, uint32_t* to, int64_t to_row) {
  __m512i x[16];
  for (int r = 0; r < 16; ++r) x[r] = _mm512_loadu_si512(static_cast<const char*>(from) + 4 * r * from_row);
  transpose(x);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_row, x[i]);
}

// [32][16] of bfloat16 to [16][32].
inline void transpose_elements(const bfloat16_t* from, int64_t from_row, bfloat16_t* to, int64_t to_row) {
  __m512i x[16];
  for (int r = 0; r < 16; ++r) {
    const auto* const pair = reinterpret_cast<const __m256i*>(from + 2 * r * from_row);
    const auto* const next = reinterpret_cast<const __m256i*>(from + (2 * r + 1) * from_row);
    x[r] = _mm512_or_si512(_mm512_cvtepu16_epi32(_mm256_loadu_si256(pair)),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(next)), 16));
  }
  transpose(x);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_row, x[i]);
}

// 2^x for x <= 0; 0 below 2^-126 and for -inf; NaN stays. Exact for integers, else with a relative error
// below 2e-7: a third fewer instructions than a portable one, which is as much as the products of an
// attention take.
inline __m512 fast_exp2(__m512 x) {
  // 2^f = 1 + sum of kExp2[n] f^(n + 1) on [0, 1], relative error 1e-7
  constexpr float kExp2[] = {0.69315105677f, 0.24016565084f, 0.05579930171f, 0.00901488494f, 0.00186895637f};
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // x - floor(x); 0 for -inf
  __m512 p = _mm512_set1_ps(kExp2[4]);
  for (int n = 3; n >= 0; --n) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[n]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  // p 2^floor(x). A lane that the mask leaves out cannot underflow, which would take the CPU 140 cycles.
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, x);
}

// The first `count` of 32 elements; to zeros in place of the rest, or to nothing.
inline __mmask32 first_elements(int64_t count) {
  return count >= kTileStep ? ~0u : count > 0 ? (1u << count) - 1 : 0;
}
inline void copy_and_fill(const bfloat16_t* from, int64_t count, bfloat16_t* to) {
  _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(first_elements(count), from));
}
inline void copy_elements(const void* from, int64_t count, void* to) {
  const __mmask32 there = first_elements(count);
  _mm512_mask_storeu_epi16(to, there, _mm512_maskz_loadu_epi16(there, from));
}

// Pairs of a's lanes and b's, rounded as to_bfloat16() does.
inline void store_as_pairs(BfloatPair* to, __m512 a, __m512 b) {
  const auto rounded = [](__m512 x) {  // in the high half
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_blend_epi32(is_nan, sum, _mm512_set1_epi32(0x7fc00000));
  };
  const __m512i low = _mm512_srli_epi32(rounded(a), 16);
  _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, low, rounded(b)));
}

// The same, fewer instructions, for what the tiles take: subnormal numbers become 0.
inline void store_pairs(void* to, __m512 a, __m512 b) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a)));
}

}  // namespace
}  // namespace fastdiff
