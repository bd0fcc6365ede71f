// SPDX-License-Identifier: Apache-2.0
// From rows of bytes and packed panels to results: exact sums, zero points, the epilogue. For CPU files.
#pragma once

#include "quant/epilogue_cpu.h"
#include "quant/int8_tiles.h"

namespace fastdiff::quant {
namespace {

struct Int8Factors {
  const int8_t* weight;       // panels
  const int32_t* column_sum;  // [slots]
  const int32_t* zero_point;  // [slots] or null
  int64_t pieces;
  const float* row_scale;   // [M]
  const int32_t* row_zero;  // [M], of q as it should be, without an offset
  const int32_t* row_sum;   // [M], likewise; read only with zero_point
};

// Rows [first, first + rows) of the result at the panels [begin, end). `q`: their bytes, in groups from a
// multiple of 16 rows on.
template <class Tiles, bool kSigned>
class Int8Sums {
  using U = Floats::U;
  static constexpr int kWide = Floats::width;

 public:
  Int8Sums(const Epilogue& e, const Int8Factors& f) : e_(e), f_(f), pair_(e), single_(e) {}

  void operator()(const uint8_t* q, int64_t first, int64_t rows, int64_t begin, int64_t end) {
    const int64_t panel_bytes = f_.pieces * kPieceBytes;
    for (int64_t panel = begin; panel < end; panel += kPair) {
      const int panels = static_cast<int>(std::min<int64_t>(kPair, end - panel));
      const int8_t* const w = f_.weight + panel * panel_bytes;
      for (int64_t r = 0; r < rows; r += Tiles::kRows) {
        const int count = static_cast<int>(std::min<int64_t>(Tiles::kRows, rows - r));
        const int64_t group = (r / kGroupRows * f_.pieces * kGroupRows + r % kGroupRows) * kPiece;
        Tiles::template multiply<kSigned>(q + group, count, w, panel_bytes, panels, f_.pieces, sums_);
        for (int i = 0; i < count; ++i) finish(first + r + i, panel * kPanel, panels, sums_ + i * kSumsRow);
      }
    }
  }

 private:
  void finish(int64_t m, int64_t slot, int panels, const int32_t* sums) {
    const int32_t zero = f_.row_zero[m] + Tiles::template kOffset<kSigned>;
    const U zero_of_row = splat<U>(static_cast<uint32_t>(zero));
    const FloatLanes scale = splat<FloatLanes>(f_.row_scale[m]);
    for (int c = 0; c < panels * kPanel; c += kWide) {
      U sum = load(sums + c);
      // Sums may wrap on the way; the result does not.
      if (zero != 0) sum = sub(sum, Dots::times(zero_of_row, load(f_.column_sum + slot + c)));
      if (f_.zero_point != nullptr) {
        const auto row = static_cast<uint32_t>(f_.row_sum[m]) -
                         static_cast<uint32_t>(e_.inner) * static_cast<uint32_t>(f_.row_zero[m]);
        sum = sub(sum, Dots::times(splat<U>(row), load(f_.zero_point + slot + c)));
      }
      Floats::store(linear_ + c, mul(float_from_signed(sum), scale));
    }
    if (panels == kPair) {
      pair_(m, slot, linear_);
    } else {
      single_(m, slot, linear_);
    }
  }

  static U load(const int32_t* p) { return Floats::load_words(reinterpret_cast<const uint32_t*>(p)); }

  const Epilogue& e_;
  const Int8Factors f_;
  Finish<kPair> pair_;
  Finish<1> single_;
  alignas(64) int32_t sums_[Tiles::kRows * kSumsRow];
  alignas(64) float linear_[kSumsRow];
};

}  // namespace
}  // namespace fastdiff::quant
