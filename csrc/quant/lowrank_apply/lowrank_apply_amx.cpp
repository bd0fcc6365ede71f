// SPDX-License-Identifier: Apache-2.0
// lowrank_apply with the tiles of AMX, where x and both factors are bfloat16. p is float32 and is multiplied
// as the sum of two bfloat16, by a U that is there twice: all but the last 2^-17 of it counts.
#include <cmath>

#include "core/tiles_amx.h"
#include "quant/lowrank_apply/lowrank_apply_rows.h"

namespace fastdiff::lowrank_apply {
namespace {

constexpr int kBlockRows = 2 * kTile;
constexpr int kWidth = 256;  // columns of y that are finished together
constexpr int kMostRank = 128;

// Factors as the tiles take them, filled up with zeros: pairs of neighbours along a sum, side by side for the
// columns.
struct Factors {
  const BfloatPair* down;  // [K in 32s / 2][rank_padded]
  const BfloatPair* up;    // [N / 64][rank_padded][64]: the pairs of U, and once more
  int64_t rank_padded;     // to 16

  int64_t p_row() const { return 2 * rank_padded; }
};

// Element (step, column) of a factor, 0 where there is none.
bfloat16_t element_of(const Factor& f, int64_t steps, int64_t columns, int64_t step, int64_t column) {
  if (step >= steps || column >= columns) return {0};
  return static_cast<const bfloat16_t*>(f.data)[step * f.step + column * f.column];
}

BfloatPair pair_of(bfloat16_t low, bfloat16_t high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

bool is_finite(bfloat16_t x) {
  return (x.bits & 0x7f80) != 0x7f80;
}

void write_down(const Params& p, int64_t rank_padded, int64_t pair, BfloatPair* to) {
  for (int64_t j = 0; j < rank_padded; ++j) {
    const auto at = [&](int64_t k) { return element_of(p.down, p.inputs, p.rank, k, j); };
    to[pair * rank_padded + j] = pair_of(at(2 * pair), at(2 * pair + 1));
  }
}

// 64 columns of U; whether all of them are numbers.
bool write_up(const Params& p, int64_t rank_padded, int64_t panel, BfloatPair* to) {
  bool finite = true;
  BfloatPair* const first = to + panel * rank_padded * kPanel;
  for (int64_t pair = 0; pair < rank_padded / 2; ++pair)
    for (int64_t n = 0; n < kPanel; ++n) {
      const auto at = [&](int64_t j) { return element_of(p.up, p.rank, p.outputs, j, panel * kPanel + n); };
      const bfloat16_t low = at(2 * pair), high = at(2 * pair + 1);
      finite &= is_finite(low) && is_finite(high);
      first[pair * kPanel + n] = first[(rank_padded / 2 + pair) * kPanel + n] = pair_of(low, high);
    }
  return finite;
}

class Worker : public RowBlock<float, kBlockRows, kWidth> {
 public:
  Worker(const Params& p, const Factors& f) : RowBlock(p), f_(f) {}

  // The rows that were entered, all the way; sums: memory [rows, but at least one][p_row_].
  void apply(float* sums) {
    if (const int64_t x_row = distance_of_rows(); x_row >= 0) {
      shrink(x_of(0), x_row, 0, p_.inputs);
    } else {
      for (int64_t k = 0; k < p_.inputs; k += kChunk) shrink_copy(k);
    }
    for (int n = 0; n < rows_; ++n) std::copy_n(sums_ + n * f_.rank_padded, p_.rank, sums + n * p_row_);
    gate(sums);
    for (int n = 0; n < rows_; ++n) split(sums + n * p_row_, p_split_ + n * f_.p_row());
    for (int64_t column = 0; column < p_.outputs; column += kWidth) {
      const int count = static_cast<int>(std::min<int64_t>(kWidth, p_.outputs - column));
      for (int n = 0; n < count; n += kPanel) expand(column + n, y_[0] + n);
      finish(column, count);
    }
  }

 private:
  int row_tiles() const { return rows_ > kTile ? 2 : 1; }

  // Of 64 columns.
  void expand(int64_t column, float* y) {
    const BfloatPair* const up = f_.up + column * f_.rank_padded;
    const int steps = static_cast<int>(f_.p_row() / kTileStep);
    tile_products<false, kPanel / kTile>(p_split_, f_.p_row(), up, kPanel, steps, y, kWidth, row_tiles());
  }

  const bfloat16_t* x_of(int n) const { return static_cast<const bfloat16_t*>(p_.x.at.data) + x_at_[n]; }

  // Where whole tiles lie in x: elements between rows; else -1.
  int64_t distance_of_rows() const {
    if (rows_ < kBlockRows || p_.x.column != 1 || p_.inputs % kTileStep != 0) return -1;
    const int64_t distance = x_at_[1] - x_at_[0];
    for (int n = 2; n < rows_; ++n)
      if (x_at_[n] - x_at_[n - 1] != distance) return -1;
    return distance;
  }

  // Elements [first, first + 256) of K, from a copy filled up with zeros.
  void shrink_copy(int64_t first) {
    const int64_t count = std::min<int64_t>(kChunk, p_.inputs - first), column = p_.x.column;
    for (int n = 0; n < rows_; ++n) {
      const bfloat16_t* const x = x_of(n) + first * column;
      for (int64_t k = 0; k < count; ++k) x_[n][k] = x[k * column];
      std::fill(x_[n] + count, x_[n] + rounded_up(count, kTileStep), bfloat16_t{0});
    }
    shrink(x_[0], kChunk, first, count);
  }

  // sums_ (+)= x down^T over `count` elements of K.
  void shrink(const bfloat16_t* x, int64_t x_row, int64_t first, int64_t count) {
    const BfloatPair* const down = f_.down + first / 2 * f_.rank_padded;
    const auto steps = static_cast<int>((count + kTileStep - 1) / kTileStep);
    const auto multiply = [&]<int kColumns>(int64_t j, std::integral_constant<int, kColumns>) {
      const auto products = first == 0 ? tile_products<false, kColumns> : tile_products<true, kColumns>;
      products(x, x_row, down + j, f_.rank_padded, steps, sums_ + j, f_.rank_padded, row_tiles());
    };
    int64_t j = 0;
    for (; j + 2 * kTile <= f_.rank_padded; j += 2 * kTile) multiply(j, std::integral_constant<int, 2>{});
    if (j < f_.rank_padded) multiply(j, std::integral_constant<int, 1>{});
  }

  // The nearest bfloat16, and what is left.
  void split(const float* p, bfloat16_t* to) const {
    std::fill_n(to, f_.p_row(), bfloat16_t{0});
    for (int64_t j = 0; j < p_.rank; ++j) {
      to[j] = to_bfloat16(p[j]);
      if (!is_finite(to[j]) && std::isfinite(p[j])) --to[j].bits;  // the largest that is
      if (is_finite(to[j])) to[f_.rank_padded + j] = to_bfloat16(p[j] - widen(to[j]));
    }
  }

  const Factors f_;
  alignas(64) bfloat16_t x_[kBlockRows][kChunk] = {};
  alignas(64) float sums_[kBlockRows * kMostRank];
  alignas(64) bfloat16_t p_split_[kBlockRows * 2 * kMostRank] = {};
};

bool takes_tiles(const Params& p) {
  const bool is_bf16 =
      p.x.at.dtype == DType::bf16 && p.down.dtype == DType::bf16 && p.up.dtype == DType::bf16;
  return is_bf16 && !is_streamed(p) && p.inputs > 0 && p.rank > 0 && p.rank <= kMostRank;
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (!takes_tiles(params)) return Cpu<Isa::avx512>::run(params, scratch, team);
  const Team& own = team_for(params, team);
  const int64_t rank_padded = rounded_up(params.rank, kTile);
  float* const p = static_cast<float*>(scratch);
  auto* const down = reinterpret_cast<BfloatPair*>(p + p_numel(params));
  BfloatPair* const up = down + panels_numel(params.inputs, params.rank);
  std::atomic<bool> finite = true;
  const auto nobody = [] { return 0; };
  each_item(own, rounded_up(params.inputs, kTileStep) / 2, nobody,
            [&](int, int64_t pair) { write_down(params, rank_padded, pair, down); });
  each_item(own, rounded_up(params.outputs, kPanel) / kPanel, nobody, [&](int, int64_t panel) {
    if (!write_up(params, rank_padded, panel, up)) finite = false;
  });
  // What is left of p, 0 perhaps, must not meet infinity.
  if (!finite) return Cpu<Isa::avx512>::run(params, scratch, team);
  const Factors factors{down, up, rank_padded};
  each_item(
      own, (params.rows() + kBlockRows - 1) / kBlockRows, [&] { return Worker(params, factors); },
      [&](Worker& worker, int64_t block) {
        const int64_t row = block * kBlockRows;
        set_up_tiles();
        worker.enter(row, static_cast<int>(std::min<int64_t>(kBlockRows, params.rows() - row)));
        worker.apply(p + row * rounded_up(params.rank, kPanel));
        release_tiles();
      });
}

}  // namespace fastdiff::lowrank_apply
