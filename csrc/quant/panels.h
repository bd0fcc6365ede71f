// SPDX-License-Identifier: Apache-2.0
// How packed weights lie in memory, the same for every instruction set and device.
//
// A weight [N, K] is cut into panels of 16 rows, which are columns of the product y = x W^T, and a panel into
// pieces of 64 along K; both are filled up with zeros. A piece is 16 words of 4 bytes for each of 16 columns:
//   int8   [slots / 16][K / 64][16][16][4]   piece, quadruple along K, column, element of the quadruple
// which is what dot products of four int8 take, a cache line for each quadruple, and a tile of AMX as it is.
// With a gated activation panels alternate: 16 rows of the first half of W, 16 of the second, and so on, so
// that a value and its gate come out of neighbouring panels. Slots are columns in this order, filled up.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastdiff::quant {

inline constexpr int kPanel = 16;  // columns
inline constexpr int kPiece = 64;  // along K
inline constexpr int kPieceBytes = kPanel * kPiece;

FASTDIFF_HD constexpr int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// The size of blocks of up to `most` rows, a multiple of the unit, when there are as few as possible and all
// are of nearly the same size: threads share them out beforehand.
constexpr int64_t even_block(int64_t rows, int64_t most, int64_t unit) {
  const int64_t blocks = rows > most ? (rows + most - 1) / most : 1;
  return round_up(rows > 0 ? (rows + blocks - 1) / blocks : 1, unit);
}

// The slots of N columns.
constexpr int64_t slots_of(int64_t n, bool gated) {
  return gated ? 2 * round_up(n / 2, kPanel) : round_up(n, kPanel);
}

// Where column n is, of N.
FASTDIFF_HD constexpr int64_t slot_of(int64_t n, int64_t columns, bool gated) {
  if (!gated) return n;
  const int64_t half = columns / 2, at = n < half ? n : n - half;
  return at / kPanel * (2 * kPanel) + (n < half ? 0 : kPanel) + at % kPanel;
}

// Where the tensor cores of Hopper multiply bytes (byte_tiles_wgmma.cuh), rows lie as [M / 128][pieces,
// even][128][64].
inline constexpr int kWideRows = 128, kWidePieces = 2;

constexpr bool is_wide_tile(int64_t rows) {
  return rows >= kWideRows;
}
FASTDIFF_HD constexpr int64_t wide_pieces(int64_t pieces) {
  return round_up(pieces, kWidePieces);
}
constexpr int64_t wide_bytes(int64_t rows, int64_t pieces) {
  return round_up(rows, kWideRows) * wide_pieces(pieces) * kPiece;
}

}  // namespace fastdiff::quant
