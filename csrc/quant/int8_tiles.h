// SPDX-License-Identifier: Apache-2.0
// Products of rows of bytes with packed panels, in registers; for *_cpu.cpp and *_vnni.cpp files. *_amx.cpp
// files have tiles of their own.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/dots.h"
#include "quant/panels.h"

namespace fastdiff::quant {
namespace {

inline constexpr int kPair = 2;                  // panels that are multiplied together
inline constexpr int kSumsRow = kPair * kPanel;  // int32
inline constexpr int kQuadruples = kPiece / 4;   // in a piece
inline constexpr int64_t kGroupRows = 16;        // rows of q that lie together: [pieces][16][64]

#if defined(__AVX2__)

// Rows of registers: their sums, a row of the panels and a broadcast fill the 16 or 32 that there are.
class LaneTiles {
  static constexpr int kWidth = Dots::width, kRegisters = kPanel / kWidth;
#if defined(__AVX512F__)
  static constexpr int kMostRows = 8, kPanelsAtOnce = 2;
#else
  static constexpr int kMostRows = 4, kPanelsAtOnce = 1;
#endif
  static constexpr int64_t kChunk =
      kSignsAt / (kGroupRows * kPiece);  // pieces whose signs are moved together

 public:
  static constexpr int kRows = kGroupRows;
  template <bool kSigned>
  static constexpr int kOffset = kByteOffset<kSigned>;

  struct Layout {};  // no other than that of groups
  static constexpr bool kReadsInPlace = false;

  static void begin() {}
  static void end() {}

  // sums [rows][32]: of the rows from `first` on, up to kRows, with one panel or two, `panel_bytes` apart.
  // There is nothing to be done meanwhile: vector instructions are what multiplies.
  template <bool kSigned, class Groups, class Meanwhile>
  static void multiply(const Groups& group_of, int64_t first, int rows, Layout, const int8_t* panel,
                       int64_t panel_bytes, int panels, int64_t pieces, int32_t* sums, const Meanwhile&) {
    const uint8_t* const q = group_of(first);
    for (int r = 0; r < rows; ++r) std::fill_n(sums + r * kSumsRow, panels * kPanel, 0);
    if constexpr (!kMovesSigns<kSigned>) {
      add<kSigned>(q, rows, panel, panel_bytes, panels, pieces, sums);
      return;
    }
    alignas(64) uint8_t chunk[2 * kSignsAt];
    for (int64_t piece = 0; piece < pieces; piece += kChunk) {
      const int64_t count = std::min(kChunk, pieces - piece);
      for (int r = 0; r < rows; ++r) {
        int32_t negative = 0;
        for (int64_t n = 0; n < count; ++n) {
          const int64_t at = (n * kGroupRows + r) * kPiece;
          negative += move_signs(q + piece * (kGroupRows * kPiece) + at, chunk + at);
        }
        for (int c = 0; c < panels * kPanel; ++c) sums[r * kSumsRow + c] += negative;
      }
      add<kSigned>(chunk, rows, panel + piece * kPieceBytes, panel_bytes, panels, count, sums);
    }
  }

 private:
  // The same, but added to them.
  template <bool kSigned>
  static void add(const uint8_t* q, int rows, const int8_t* panel, int64_t panel_bytes, int panels,
                  int64_t pieces, int32_t* sums) {
    for (int p = 0; p < panels; p += kPanelsAtOnce) {
      const int8_t* const w = panel + p * panel_bytes;
      const int now = panels - p < kPanelsAtOnce ? 1 : kPanelsAtOnce;
      int r = 0;
      for (; r + kMostRows <= rows; r += kMostRows)
        some<kMostRows, kSigned>(q + r * kPiece, w, panel_bytes, now, pieces,
                                 sums + r * kSumsRow + p * kPanel);
      if (const int left = rows - r; left > 0)
        rest<kMostRows / 2, kSigned>(left, q + r * kPiece, w, panel_bytes, now, pieces,
                                     sums + r * kSumsRow + p * kPanel);
    }
  }

  template <int kCount, bool kSigned>
  static void rest(int left, const uint8_t* q, const int8_t* w, int64_t panel_bytes, int panels,
                   int64_t pieces, int32_t* sums) {
    if (left >= kCount) {
      some<kCount, kSigned>(q, w, panel_bytes, panels, pieces, sums);
      left -= kCount, q += kCount * kPiece, sums += kCount * kSumsRow;
    }
    if constexpr (kCount > 1)
      if (left > 0) rest<kCount / 2, kSigned>(left, q, w, panel_bytes, panels, pieces, sums);
  }

  template <int kCount, bool kSigned>
  static void some(const uint8_t* q, const int8_t* w, int64_t panel_bytes, int panels, int64_t pieces,
                   int32_t* sums) {
    if constexpr (kPanelsAtOnce == 2)
      if (panels == 2) return product<kCount, 2, kSigned>(q, w, panel_bytes, pieces, sums);
    product<kCount, 1, kSigned>(q, w, panel_bytes, pieces, sums);
  }

  template <int kCount, int kPanels, bool kSigned>
  static void product(const uint8_t* q, const int8_t* w, int64_t panel_bytes, int64_t pieces, int32_t* sums) {
    constexpr int kColumns = kPanels * kRegisters;
    Dots::V sum[kCount][kColumns];
    for (int r = 0; r < kCount; ++r)
      for (int c = 0; c < kColumns; ++c) sum[r][c] = Dots::load(sums + r * kSumsRow + c * kWidth);
    for (int64_t piece = 0; piece < pieces; ++piece, q += kGroupRows * kPiece, w += kPieceBytes)
      for (int k = 0; k < kQuadruples; ++k) {
        Dots::V columns[kColumns];
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c)
          columns[c] =
              Dots::load(w + c / kRegisters * panel_bytes + k * kPiece + c % kRegisters * 4 * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < kCount; ++r) {
          const auto x = share<kSigned>(q + r * kPiece + 4 * k);
#pragma GCC unroll 4
          for (int c = 0; c < kColumns; ++c) sum[r][c] = Dots::dot<kSigned>(sum[r][c], x, columns[c]);
        }
      }
    for (int r = 0; r < kCount; ++r)
      for (int c = 0; c < kColumns; ++c) Dots::store(sums + r * kSumsRow + c * kWidth, sum[r][c]);
  }
};

#else

class LaneTiles {
 public:
  static constexpr int kRows = 1;
  template <bool kSigned>
  static constexpr int kOffset = 0;

  struct Layout {};  // no other than that of groups
  static constexpr bool kReadsInPlace = false;

  static void begin() {}
  static void end() {}

  template <bool kSigned, class Groups, class Meanwhile>
  static void multiply(const Groups& group_of, int64_t r, int, Layout, const int8_t* panel,
                       int64_t panel_bytes, int panels, int64_t pieces, int32_t* sums, const Meanwhile&) {
    const uint8_t* const q = group_of(r);
    for (int p = 0; p < panels; ++p) {
      const int8_t* w = panel + p * panel_bytes;
      int32_t sum[kPanel] = {};
      for (int64_t piece = 0; piece < pieces; ++piece)
        for (int k = 0; k < kPiece; k += 4, w += kPiece)
          for (int j = 0; j < 4; ++j) {
            const int x = static_cast<int8_t>(q[piece * kGroupRows * kPiece + k + j]);
            for (int c = 0; c < kPanel; ++c) sum[c] += x * w[4 * c + j];
          }
      std::memcpy(sums + p * kPanel, sum, sizeof sum);
    }
  }
};

#endif

}  // namespace
}  // namespace fastdiff::quant
