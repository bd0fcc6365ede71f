// SPDX-License-Identifier: Apache-2.0
// weight_linear with the tiles of AMX, for rows of bfloat16 and e4m3: a block along K of a pair of panels is
// decoded to tiles, or taken as it lies, and stays in the first-level cache while all rows of a block pass.
#include "core/tiles_amx.h"
#include "quant/weight_linear/weight_linear_rows.h"

namespace fastdiff::weight_linear {
namespace {

constexpr int64_t kFewRows = 4;                 // for which decoding takes longer than the products
constexpr int64_t kSteps = kBlock / kTileStep;  // tiles along K in a block
constexpr int64_t kTileBytes = 1024;

int64_t steps_of(const Params& p) {
  return (p.epilogue.inner + kTileStep - 1) / kTileStep;
}

// Rows from a multiple of 16 on, as tiles [steps][16][32].
bfloat16_t* tiles_of(const Params& p, int64_t m) {
  return reinterpret_cast<bfloat16_t*>(p.blocks) + m / kTile * steps_of(p) * kTile * kTileStep;
}

void write_row(const Params& p, int64_t m, const Row& row) {
  const int64_t steps = steps_of(p);
  const auto* const x = static_cast<const bfloat16_t*>(row.data) + row.at;
  bfloat16_t* to = tiles_of(p, m) + m % kTile * kTileStep;
  for (int64_t s = 0; s < steps; ++s, to += kTile * kTileStep) {
    const int64_t k = s * kTileStep, count = std::min<int64_t>(kTileStep, p.epilogue.inner - k);
    if (row.dtype == DType::f32) {  // of e4m3: bfloat16 holds it
      store_run(to, DType::bf16, 0, 1, count, static_cast<const float*>(row.data) + k);
      std::fill_n(to + count, kTileStep - count, bfloat16_t{0});
    } else if (row.element == 1) {
      copy_and_fill(x + k, count, to);
    } else {
      for (int64_t j = 0; j < kTileStep; ++j) to[j] = j < count ? x[(k + j) * row.element] : bfloat16_t{0};
    }
  }
}

template <Scheme kScheme, bool kHasZero>
class Tiles {
  static constexpr bool kAsTheyLie = kScheme == Scheme::bf16;

 public:
  static constexpr int64_t kRowsOfBlock = 256;

  explicit Tiles(const Params& p) : p_(p) {}

  void add_block(int64_t first, int64_t rows, int64_t panel, int panels, int64_t k, float* sums) {
    const int64_t all = steps_of(p_), step = k / kTileStep, steps = std::min(kSteps, all - step);
    const void* w[kPair] = {};
    for (int n = 0; n < panels; ++n) w[n] = weights(panel + n, step, steps, weights_[n]);
    for (int64_t r = 0; r < rows; r += 2 * kTile, sums += 2 * kTile * kSumsRow) {
      const bfloat16_t* const x = tiles_of(p_, first + r) + step * kTile * kTileStep;
      const bfloat16_t* const next = rows - r > kTile ? x + all * kTile * kTileStep : nullptr;
      if (k == 0) {
        whole_products<bfloat16_t>(x, next, w[0], w[1], steps, sums, kSumsRow);
      } else {
        whole_products<bfloat16_t, true>(x, next, w[0], w[1], steps, sums, kSumsRow);
      }
    }
  }

 private:
  // Of a panel, as tiles [steps][16][16] of pairs along K.
  const void* weights(int64_t panel, int64_t step, int64_t steps, char* to) const {
    if constexpr (kAsTheyLie) return p_.weight + panel * p_.panel_bytes + step * kTileBytes;
    Columns<kScheme, kHasZero> columns(p_, panel * kPanel);
    char* at = to;
    each_group<kScheme>(p_, step * kTileStep, (step + steps) * kTileStep,
                        [&](int64_t begin, int64_t end, int64_t group) {
                          columns.begin_group(group);
                          const auto scaled = [&](FloatLanes w) {
                            return kScheme == Scheme::int4 ? mul(w, columns.scale()) : w;
                          };
                          for (int64_t element = begin; element < end; element += kEight) {
                            FloatLanes even;
                            columns.eight(element / kEight, [&](int k, FloatLanes w) {
                              if (k % 2 == 0) {
                                even = scaled(w);
                              } else {
                                store_pairs(at, even, scaled(w));
                                at += kWordRow;
                              }
                            });
                          }
                        });
    return to;
  }

  const Params& p_;
  alignas(64) char weights_[kPair][kAsTheyLie ? 64 : kSteps * kTileBytes];
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  const bool holds_rows = p.rounds || p.x.dtype == DType::bf16;
  if (!holds_rows || p.epilogue.rows <= kFewRows) return Cpu<Isa::avx512>::run(p, team);
  widen_all(p, team, [&p](int64_t m, const Row& x) { write_row(p, m, x); });
  with_scheme(p, [&]<Scheme kScheme, bool kHasZero>(std::integral_constant<Scheme, kScheme>,
                                                    std::bool_constant<kHasZero>) {
    using Kernel = Tiles<kScheme, kHasZero>;
    each_block(p, team, Kernel::kRowsOfBlock, 2 * kTile,
               [&](int64_t first, int64_t rows, int64_t panel, int64_t panels) {
                 set_up_tiles();
                 Passes<Kernel> passes(p);
                 passes(first, rows, panel, panel + panels);
                 release_tiles();
               });
  });
}

}  // namespace fastdiff::weight_linear
