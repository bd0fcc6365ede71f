// SPDX-License-Identifier: Apache-2.0
// weight_linear with the tiles of AMX, for rows of bfloat16 and e4m3: a block along K of a pair of panels is
// decoded to tiles and stays in the first-level cache while all rows of a block pass.
#include <atomic>
#include <new>
#include <utility>

#include "core/tiles_amx.h"
#include "quant/weight_linear/weight_linear_rows.h"

namespace fastdiff::weight_linear {
namespace {

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

// A block of weights: some panels, of which pairs are multiplied together, and some tiles along K.
struct Chunk {
  int64_t panel = 0, end = 0, step = 0, steps = 0;
  int64_t tiles() const { return (end - panel) * steps; }
};

// Weights as tiles [steps][16][16] of pairs along K. Where they have to be decoded there are two chunks of
// them: one is read while the other is made.
template <Scheme kScheme, bool kHasZero>
class Weights {
  static constexpr bool kAsTheyLie = kScheme == Scheme::bf16;

 public:
  static constexpr int64_t kMostBytes = 1 << 18;  // of a chunk

  explicit Weights(const Params& p) : p_(p) {}

  // From now on panel() is of the chunk that has been made, and `next` is made.
  void turn_to(const Chunk& next) {
    made_ = std::exchange(making_, next);
    done_ = 0;
    now_ = 1 - now_;
  }

  const void* panel(int64_t panel) const {
    if constexpr (kAsTheyLie) return p_.weight + panel * p_.panel_bytes + made_.step * kTileBytes;
    return buffers_[1 - now_] + (panel - made_.panel) * made_.steps * kTileBytes;
  }

  // So many more tiles.
  void make(int64_t count) {
    if constexpr (kAsTheyLie) return;
    for (const int64_t end = std::min(done_ + count, making_.tiles()); done_ < end; ++done_)
      decode(making_.panel + done_ / making_.steps, making_.step + done_ % making_.steps,
             buffers_[now_] + done_ * kTileBytes);
  }

 private:
  void decode(int64_t panel, int64_t step, char* to) const {
    Columns<kScheme, kHasZero> columns(p_, panel * kPanel);
    columns.begin_group(kScheme == Scheme::int4 ? step * kTileStep / p_.group : 0);
    const auto scaled = [&](FloatLanes w) { return kScheme == Scheme::int4 ? mul(w, columns.scale()) : w; };
    for (int64_t eight = 0; eight < kTileStep / kEight; ++eight) {
      FloatLanes even;
      columns.eight(step * (kTileStep / kEight) + eight, [&](int k, FloatLanes w) {
        if (k % 2 == 0) {
          even = scaled(w);
        } else {
          store_pairs(to, even, scaled(w));
          to += kWordRow;
        }
      });
    }
  }

  const Params& p_;
  Chunk made_, making_;
  int64_t done_ = 0;  // tiles
  int now_ = 0;       // the buffer that tiles are made in
  alignas(64) char buffers_[2][kAsTheyLie ? 64 : kMostBytes];
};

// Rows [first, first + rows) by panels [begin, end). While tiles multiply, vector instructions are free: the
// next chunk of weights is made then, and the block of sums before becomes results. Too large for a stack.
template <Scheme kScheme, bool kHasZero>
class Products {
  static constexpr int kRows = 2 * kTile, kMostPairs = 8;
  // Short rows need no sums in memory; of long ones a block along K is to stay in the second-level cache.
  static constexpr int64_t kShortRow = 2048, kDepth = 512, kDepthUnit = 128;  // of groups of int4

 public:
  static constexpr int64_t kRowsOfBlock = 256;

  explicit Products(const Params& p) : p_(p), weights_(p), pair_(p.epilogue), single_(p.epilogue) {}

  void operator()(int64_t first, int64_t rows, int64_t begin, int64_t end) {
    const int64_t inner = p_.epilogue.inner, all = steps_of(p_);
    const int64_t steps = even_block(inner, inner <= kShortRow ? kShortRow : kDepth, kDepthUnit) / kTileStep;
    const int64_t pairs =
        std::clamp<int64_t>(weights_.kMostBytes / (kPair * steps * kTileBytes), 1, kMostPairs);
    const auto chunk_at = [&](int64_t panel, int64_t step) {
      return panel < end
                 ? Chunk{panel, std::min(end, panel + pairs * kPair), step, std::min(steps, all - step)}
                 : Chunk{};
    };
    Chunk next = chunk_at(begin, 0);
    weights_.turn_to(next);
    while (next.steps > 0) {
      weights_.make(next.tiles());
      const Chunk chunk = next;
      const bool is_last = chunk.step + chunk.steps == all;
      next = is_last ? chunk_at(chunk.end, 0) : chunk_at(chunk.panel, chunk.step + chunk.steps);
      weights_.turn_to(next);
      multiply(chunk, next.tiles(), is_last, first, rows);
    }
  }

 private:
  // Sums of some rows at a pair of panels.
  struct Block {
    float* sums = nullptr;
    int64_t m = 0, slot = 0;
    int rows = 0, panels = 0;
  };

  // `ahead`: tiles that are made meanwhile.
  void multiply(const Chunk& chunk, int64_t ahead, bool is_last, int64_t first, int64_t rows) {
    const int64_t blocks = (rows + kRows - 1) / kRows, pairs = (chunk.end - chunk.panel + 1) / kPair;
    const int64_t all = blocks * pairs * chunk.steps, pace = (kRows + chunk.steps - 1) / chunk.steps;
    int64_t due = 0;
    for (int64_t r = 0; r < rows; r += kRows)
      for (int64_t panel = chunk.panel; panel < chunk.end; panel += kPair) {
        now_ = {sums_[(panel - chunk.panel) / kPair] + r * kSumsRow, first + r, panel * kPanel,
                static_cast<int>(std::min<int64_t>(kRows, rows - r)),
                static_cast<int>(std::min<int64_t>(kPair, chunk.end - panel))};
        product(chunk, panel, [&] {
          finish(pace);
          for (due += ahead; due >= all; due -= all) weights_.make(1);
        });
        finish(kRows);
        if (is_last) before_ = now_, due_ = done_ = 0;
      }
    finish(kRows);  // the sums of the next chunk take their place
  }

  // Of the block now.
  template <class Meanwhile>
  void product(const Chunk& chunk, int64_t panel, const Meanwhile& meanwhile) {
    const bfloat16_t* const x = tiles_of(p_, now_.m) + chunk.step * kTile * kTileStep;
    const bfloat16_t* const next = now_.rows > kTile ? x + steps_of(p_) * kTile * kTileStep : nullptr;
    const void* const w = weights_.panel(panel);
    const void* const second = now_.panels == kPair ? weights_.panel(panel + 1) : nullptr;
    if (chunk.step == 0) {
      whole_products<bfloat16_t>(x, next, w, second, chunk.steps, now_.sums, kSumsRow, meanwhile);
    } else {
      whole_products<bfloat16_t, true>(x, next, w, second, chunk.steps, now_.sums, kSumsRow, meanwhile);
    }
  }

  // Of the block before so many more rows, as soon as there are enough of them.
  void finish(int64_t count) {
    constexpr int kTogether = Finish<kPair>::kMostRows;
    due_ = static_cast<int>(std::min<int64_t>(before_.rows, due_ + count));
    for (; due_ - done_ >= kTogether; done_ += kTogether) finish_rows<kTogether>();
    if (due_ == before_.rows)
      for (; done_ < due_; ++done_) finish_rows<1>();
  }

  template <int kCount>
  void finish_rows() {
    const int64_t m = before_.m + done_;
    const float* const sums = before_.sums + done_ * kSumsRow;
    for (int r = 0; r < kCount && done_ + r < now_.rows; ++r) pair_.expect(now_.m + done_ + r, now_.slot);
    if (before_.panels == kPair) return pair_.template rows<kCount>(m, before_.slot, sums);
    for (int r = 0; r < kCount; ++r) single_(m + r, before_.slot, sums + r * kSumsRow);
  }

  const Params& p_;
  Weights<kScheme, kHasZero> weights_;
  Finish<kPair> pair_;
  Finish<1> single_;
  Block now_, before_;
  int due_ = 0, done_ = 0;  // rows of the one before
  alignas(64) float sums_[kMostPairs][kRowsOfBlock * kSumsRow];
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  if (!p.takes_tiles()) return Cpu<Isa::avx512>::run(p, team);
  widen_all(p, team, [&p](int64_t m, const Row& x) { write_row(p, m, x); });
  with_scheme(p, [&]<Scheme kScheme, bool kHasZero>(std::integral_constant<Scheme, kScheme>,
                                                    std::bool_constant<kHasZero>) {
    using Kernel = Products<kScheme, kHasZero>;
    static_assert(sizeof(Kernel) <= kTilesBytes && alignof(Kernel) <= 64);
    const Blocks blocks(p, team, Kernel::kRowsOfBlock, 2 * kTile);
    std::atomic<int64_t> next{0};
    each_part(team, std::min<int64_t>(team.threads, blocks.count()), [&](int64_t worker) {
      Kernel& products = *new (p.tiles + worker * kTilesBytes) Kernel(p);
      set_up_tiles();
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < blocks.count();)
        blocks.at(n, [&](int64_t first, int64_t rows, int64_t panel, int64_t panels) {
          products(first, rows, panel, panel + panels);
        });
      release_tiles();
    });
  });
}

}  // namespace fastdiff::weight_linear
