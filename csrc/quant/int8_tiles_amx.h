// SPDX-License-Identifier: Apache-2.0
// Products of rows of bytes with packed panels by the tiles of AMX; for *_amx.cpp files.
#pragma once

#include "core/tiles_amx.h"
#include "quant/int8_tiles.h"

namespace fastdiff::quant {
namespace {

// Blocks of 32 rows by 32 columns: two tiles of each factor are read for four products.
class MatrixTiles {
 public:
  static constexpr int kRows = 2 * kTile;
  template <bool kSigned>
  static constexpr int kOffset = 0;

  static void begin() { set_up_tiles(); }
  static void end() { release_tiles(); }

  using Layout = TileLayout;
  static constexpr bool kReadsInPlace = true;

  template <bool kSigned, class Groups, class Meanwhile>
  static void multiply(const Groups& group_of, int64_t r, int rows, const Layout& layout, const int8_t* panel,
                       int64_t panel_bytes, int panels, int64_t pieces, int32_t* sums,
                       const Meanwhile& meanwhile) {
    const uint8_t* const next = rows > kTile ? group_of(r + kTile) : nullptr;
    const int8_t* const second = panels > 1 ? panel + panel_bytes : nullptr;
    whole_products<int8_t>(group_of(r), next, panel, second, pieces, sums, kSumsRow, meanwhile, layout);
  }
};

}  // namespace
}  // namespace fastdiff::quant
