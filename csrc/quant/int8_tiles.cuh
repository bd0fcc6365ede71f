// SPDX-License-Identifier: Apache-2.0
// Products of rows of bytes with packed panels on the tensor cores (mma.sync, sm_80 and later).
//
// Rows lie in groups of 16: q [groups][pieces][16][64]; weights in panels, quant/panels.h. Both are copied
// piece by piece into shared memory, 16 bytes at a time, in an order in which the fragments of a warp, four
// bytes for each lane, come from different banks.
#pragma once

#include "core/ptx.cuh"
#include "quant/panels.h"

namespace fastdiff::quant {
namespace {

constexpr int kMmaThreads = 256;
constexpr int kStages = 3;  // pieces under way

// Of a block of 8 warps: 4 by 2 of 32 rows by 32 columns.
constexpr int kTileRows = 128, kTilePanels = 4, kTileColumns = kTilePanels * kPanel;
constexpr int kRowsBytes = kTileRows * kPiece, kPanelsBytes = kTilePanels * kPieceBytes;
constexpr int kStageBytes = kRowsBytes + kPanelsBytes;
constexpr int kSumsPitch = kTileColumns + 4;  // int32; rows 4 banks apart
constexpr int kTileSmem = kStages * kStageBytes;
static_assert(kTileRows * kSumsPitch * 4 <= kTileSmem);

// Where 16-byte chunk c of row r of the first factor is, and of quadruple k of a panel.
__device__ __forceinline__ int chunk_of_row(int r, int c) {
  return r * kPiece + 16 * (c ^ (r >> 1 & 3));
}
__device__ __forceinline__ int chunk_of_quadruple(int k, int c) {
  return k * kPiece + 16 * (c ^ (k & 2));
}

struct BytePanels {
  const int8_t* weight;
  int64_t panels, pieces;
};

struct ByteFactors {
  const uint8_t* q;
  const int8_t* weight;
  int64_t groups, panels, pieces;
};

// 8 groups of rows.
__device__ inline void copy_groups(const ByteFactors& f, int64_t group, int64_t piece, unsigned char* stage) {
  for (int n = static_cast<int>(threadIdx.x); n < kRowsBytes / 16; n += kMmaThreads) {
    const int r = n / 4, c = n % 4;
    const bool there = group + r / 16 < f.groups;
    const int64_t at = ((group + r / 16) * f.pieces + piece) * kPieceBytes + r % 16 * kPiece + 16 * c;
    ptx::cp_async<16>(stage + chunk_of_row(r, c), f.q + (there ? at : 0), there ? 16 : 0);
  }
}

__device__ inline void copy_panels(const BytePanels& f, int64_t panel, int64_t piece, unsigned char* stage) {
  for (int n = static_cast<int>(threadIdx.x); n < kPanelsBytes / 16; n += kMmaThreads) {
    const int p = n / 64, k = n % 64 / 4, c = n % 4;
    const bool there = panel + p < f.panels;
    const int64_t at = ((panel + p) * f.pieces + piece) * kPieceBytes + n % 64 * 16;
    ptx::cp_async<16>(stage + kRowsBytes + p * kPieceBytes + chunk_of_quadruple(k, c),
                      f.weight + (there ? at : 0), there ? 16 : 0);
  }
}

// A lane's four bytes of panel p at quadruple k and column c.
__device__ __forceinline__ uint32_t word_of_panel(const unsigned char* panels, int p, int k, int c) {
  return *reinterpret_cast<const uint32_t*>(panels + p * kPieceBytes + chunk_of_quadruple(k, c / 4) +
                                            c % 4 * 4);
}

// sums [128][kSumsPitch] in dynamic shared memory, of 4 panels with 128 rows, whose piece copy_rows(piece,
// stage) puts where chunk_of_row() has it.
template <class CopyRows>
__device__ int32_t* tile_sums(const BytePanels& f, int64_t panel, const CopyRows& copy_rows) {
  unsigned char* const smem = dynamic_smem<unsigned char>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = warp % 4 * 32, first_panel = warp / 4 * 2, g = lane / 4, t = lane % 4;
  const auto copy_piece = [&](int64_t piece, unsigned char* stage) {
    copy_rows(piece, stage);
    copy_panels(f, panel, piece, stage);
  };
  int d[2][4][4] = {};
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < f.pieces) copy_piece(s, smem + s * kStageBytes);
    ptx::cp_async_commit();
  }
  for (int64_t piece = 0; piece < f.pieces; ++piece) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // the piece has landed, and nobody reads the one before it any more
    if (const int64_t next = piece + kStages - 1; next < f.pieces)
      copy_piece(next, smem + next % kStages * kStageBytes);
    ptx::cp_async_commit();
    const unsigned char* const rows = smem + piece % kStages * kStageBytes;
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][4];
      for (int i = 0; i < 2; ++i) {
        const int r = first_row + 16 * i + lane % 16;
        ptx::ldmatrix_x4(a[i], rows + chunk_of_row(r, 2 * half + lane / 16));
      }
      for (int j = 0; j < 4; ++j) {
        const int p = first_panel + j / 2, k = 8 * half + t, c = j % 2 * 8 + g;
        const uint32_t b[2] = {word_of_panel(rows + kRowsBytes, p, k, c),
                               word_of_panel(rows + kRowsBytes, p, k + 4, c)};
        for (int i = 0; i < 2; ++i) ptx::mma_m16n8k32_s8(d[i][j], a[i], b);
      }
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  int32_t* const sums = reinterpret_cast<int32_t*>(smem);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int n = 0; n < 4; ++n)
        sums[(first_row + 16 * i + g + n / 2 * 8) * kSumsPitch + first_panel * kPanel + 8 * j + 2 * t +
             n % 2] = d[i][j][n];
  __syncthreads();
  return sums;
}

// The same for 8 groups of rows from `group` on.
__device__ inline int32_t* tile_sums(const ByteFactors& f, int64_t group, int64_t panel) {
  return tile_sums(BytePanels{f.weight, f.panels, f.pieces}, panel,
                   [&](int64_t piece, unsigned char* stage) { copy_groups(f, group, piece, stage); });
}

// The same for one group of rows, sums [16][kSumsPitch]: what counts then is to read the weights. Each warp
// takes every eighth piece, straight from memory; sums of integers may be added in any order.
__device__ inline int32_t* group_sums(const ByteFactors& f, int64_t group, int64_t panel) {
  int32_t* const sums = dynamic_smem<int32_t>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  for (int n = static_cast<int>(threadIdx.x); n < 16 * kSumsPitch; n += kMmaThreads) sums[n] = 0;
  int d[2 * kTilePanels][4] = {};
  for (int64_t piece = warp; piece < f.pieces; piece += kMmaThreads / 32) {
    const auto* const rows =
        reinterpret_cast<const uint32_t*>(f.q + (group * f.pieces + piece) * kPieceBytes);
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      for (int i = 0; i < 4; ++i) a[i] = rows[(g + i % 2 * 8) * 16 + 8 * half + i / 2 * 4 + t];
      for (int p = 0; p < kTilePanels; ++p) {
        if (panel + p >= f.panels) break;
        const auto* const words =
            reinterpret_cast<const uint32_t*>(f.weight + ((panel + p) * f.pieces + piece) * kPieceBytes);
        for (int j = 0; j < 2; ++j) {
          const int at = (8 * half + t) * kPanel + 8 * j + g;
          const uint32_t b[2] = {words[at], words[at + 4 * kPanel]};
          ptx::mma_m16n8k32_s8(d[2 * p + j], a, b);
        }
      }
    }
  }
  __syncthreads();
  for (int j = 0; j < 2 * kTilePanels; ++j)
    for (int n = 0; n < 4; ++n)
      atomicAdd(sums + (g + n / 2 * 8) * kSumsPitch + 8 * j + 2 * t + n % 2, d[j][n]);
  __syncthreads();
  return sums;
}

}  // namespace
}  // namespace fastdiff::quant
