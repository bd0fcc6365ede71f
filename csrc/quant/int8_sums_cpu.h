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

// Rows of bytes in groups: [M / 16][pieces][16][64].
struct StoredGroups {
  const uint8_t* q;
  int64_t pieces;

  const uint8_t* operator()(int64_t r) const {
    return q + (r / kGroupRows * pieces * kGroupRows + r % kGroupRows) * kPiece;
  }
};

// Rows [first, first + rows) of the result at the panels [begin, end). group_of(r): the bytes of row `first`
// + r, those of 16 rows from a multiple of 16 on together. While a block of sums forms, the one before it
// becomes results: where tiles multiply, vector instructions are free.
template <class Tiles, bool kSigned>
class Int8Sums {
  using U = Floats::U;
  static constexpr int kWide = Floats::width, kTogether = Finish<kPair>::kMostRows;
  // Of weights that stay in the second-level cache while all rows pass: results then are written in runs that
  // are long enough for the pages of their rows to be found again.
  static constexpr int64_t kChunkBytes = 1 << 18;

 public:
  Int8Sums(const Epilogue& e, const Int8Factors& f) : e_(e), f_(f), pair_(e), single_(e) {}

  template <class Groups>
  void operator()(const Groups& group_of, int64_t first, int64_t rows, int64_t begin, int64_t end,
                  const typename Tiles::Layout& layout = {}) {
    const int64_t panel_bytes = f_.pieces * kPieceBytes;
    const int64_t chunk = std::max<int64_t>(kChunkBytes / panel_bytes / kPair, 1) * kPair;
    const int64_t pace = (Tiles::kRows + f_.pieces - 1) / f_.pieces;
    for (; begin < end; begin += chunk)
      for (int64_t r = 0; r < rows; r += Tiles::kRows)
        for (int64_t panel = begin; panel < std::min(end, begin + chunk); panel += kPair) {
          Block& block = blocks_[now_];
          block.m = first + r, block.slot = panel * kPanel;
          block.rows = static_cast<int>(std::min<int64_t>(Tiles::kRows, rows - r));
          block.panels = static_cast<int>(std::min<int64_t>(kPair, end - panel));
          Tiles::template multiply<kSigned>(group_of, r, block.rows, layout, f_.weight + panel * panel_bytes,
                                            panel_bytes, block.panels, f_.pieces, block.sums,
                                            [this, pace] { finish_rows(pace); });
          turn();
        }
    blocks_[now_].rows = 0;
    turn();
  }

 private:
  struct Block {
    alignas(64) int32_t sums[Tiles::kRows * kSumsRow];
    int64_t m = 0, slot = 0;
    int rows = 0, panels = 0;
  };

  // Of the block before, so many more, as soon as there are enough of them.
  void finish_rows(int64_t count) {
    due_ = static_cast<int>(std::min<int64_t>(blocks_[1 - now_].rows, due_ + count));
    for (; due_ - done_ >= kTogether; done_ += kTogether) finish<kTogether>();
  }

  void turn() {
    finish_rows(Tiles::kRows);
    for (; done_ < due_; ++done_) finish<1>();
    now_ = 1 - now_;
    done_ = due_ = 0;
  }

  template <int kRows>
  void finish() {
    const Block &block = blocks_[1 - now_], &next = blocks_[now_];
    const int64_t m = block.m + done_;
    for (int r = 0; r < kRows; ++r) {
      if (done_ + r < next.rows) pair_.expect(next.m + done_ + r, next.slot);
      scale(m + r, block.slot, block.panels, block.sums + (done_ + r) * kSumsRow,
            linear_ + r * block.panels * kPanel);
    }
    if (block.panels == kPair) {
      pair_.template rows<kRows>(m, block.slot, linear_);
    } else {
      single_.template rows<kRows>(m, block.slot, linear_);
    }
  }

  // Sums of a row, less what the zero points ask for, as float32.
  void scale(int64_t m, int64_t slot, int panels, const int32_t* sums, float* to) const {
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
      Floats::store(to + c, mul(float_from_signed(sum), scale));
    }
  }

  static U load(const int32_t* p) { return Floats::load_words(reinterpret_cast<const uint32_t*>(p)); }

  const Epilogue& e_;
  const Int8Factors f_;
  Finish<kPair> pair_;
  Finish<1> single_;
  Block blocks_[2];
  int now_ = 0;             // the block that forms
  int due_ = 0, done_ = 0;  // rows of the other
  alignas(64) float linear_[kTogether * kSumsRow];
};

}  // namespace
}  // namespace fastdiff::quant
