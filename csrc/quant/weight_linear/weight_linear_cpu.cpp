// SPDX-License-Identifier: Apache-2.0
// weight_linear in float32: decoded in registers for few rows, else a block of a pair of panels at a time.
#include "quant/weight_linear/weight_linear_rows.h"

namespace fastdiff::weight_linear {
namespace {

using V = FloatLanes;

constexpr int kWide = Floats::width;
constexpr int kRegisters = kPanel / kWide;  // of a panel

// Sums, a row of weights and a broadcast fill the 16 or 32 registers that there are.
constexpr int kMostRows = kWide == 16 ? 12 : kWide == 8 ? 6 : 1;
constexpr int kPanelsAtOnce = kWide == 16 ? 2 : 1;

// ---- few rows: every weight is decoded once, in registers ------------------------------------------

constexpr int kFewRows = kWide == 16 ? 8 : kWide == 8 ? 4 : 1;

// Pairs, for gated layers; with one row the chains of sums of more panels hide how long an addition takes.
template <int kRows>
constexpr int kPanelsOfFew = kRows > 1 || kWide == 1 ? kPair
                             : kWide == 16           ? 8
                                                     : 4;

template <Scheme kScheme, bool kHasZero>
class Few {
 public:
  explicit Few(const Params& p) : p_(p), pair_(p.epilogue), single_(p.epilogue) {}

  // Row m and the next, up to kRows of them that are there, at the panels [begin, end).
  template <int kRows>
  void run(int64_t begin, int64_t end) {
    some<kRows, kPanelsOfFew<kRows>>(begin, end);
  }

 private:
  template <int kRows, int kPanels>
  void some(int64_t begin, int64_t end) {
    for (; begin + kPanels <= end; begin += kPanels) product<kRows, kPanels>(begin);
    if constexpr (kPanels > 1) some<kRows, kPanels / 2>(begin, end);
  }

  template <int kRows, int kPanels>
  void product(int64_t panel) {
    constexpr int kColumns = kPanels * kRegisters;
    Columns<kScheme, kHasZero> columns[kColumns];
    for (int c = 0; c < kColumns; ++c) columns[c] = {p_, panel * kPanel + c * kWide};
    const int64_t rows = p_.epilogue.rows, inner = p_.padded_inner();
    for (int64_t block = 0; block < p_.block_count(); ++block) {
      const float* x[kRows];  // the last row again where there are fewer
      for (int r = 0; r < kRows; ++r)
        x[r] = p_.block_of(block, std::min<int64_t>(r, rows - 1)) - block * kBlock;
      const int64_t end = std::min<int64_t>((block + 1) * kBlock, inner);
      each_group<kScheme>(p_, block * kBlock, end, [&](int64_t first, int64_t last, int64_t group) {
        for (auto& column : columns) column.begin_group(group);
        V sum[kRows][kColumns];
        for (auto& row : sum)
          for (auto& s : row) s = splat<V>(0.0f);
        for (int64_t k = first; k < last; k += kEight)
#pragma GCC unroll 16
          for (int c = 0; c < kColumns; ++c)
            columns[c].eight(k / kEight, [&](int j, V w) {
#pragma GCC unroll 8
              for (int r = 0; r < kRows; ++r) sum[r][c] = fma_(splat<V>(x[r][k + j]), w, sum[r][c]);
            });
        for (int r = 0; r < kRows; ++r)
          for (int c = 0; c < kColumns; ++c) columns[c].join(sums_[r] + c * kWide, sum[r][c], first == 0);
      });
    }
    for (int64_t m = 0; m < std::min<int64_t>(kRows, rows); ++m)
      for (int n = 0; n < kPanels; n += kPair)
        if constexpr (kPanels == 1) {
          single_(m, panel * kPanel, sums_[m]);
        } else {
          pair_(m, (panel + n) * kPanel, sums_[m] + n * kPanel);
        }
  }

  const Params& p_;
  Finish<kPair> pair_;
  Finish<1> single_;
  alignas(64) float sums_[kFewRows][8 * kPanel];
};

// ---- more rows --------------------------------------------------------------------------------------

template <Scheme kScheme, bool kHasZero>
class Many {
 public:
  static constexpr int64_t kRowsOfBlock = 240;  // a multiple of kMostRows

  explicit Many(const Params& p) : p_(p) {}

  void add_block(int64_t first, int64_t rows, int64_t panel, int panels, int64_t k, float* sums) {
    const int64_t end = std::min<int64_t>(k + kBlock, p_.padded_inner());
    for (int n = 0; n < panels; ++n) decode(panel + n, k, end, weights_[n]);
    for (int n = 0; n < panels; n += kPanelsAtOnce) {
      const Factors f{p_.block_of(k / kBlock, first), weights_[n], end - k, k, (panel + n) * kPanel};
      if (panels - n >= kPanelsAtOnce) {
        some<kMostRows, kPanelsAtOnce>(f, rows, sums + n * kPanel);
      } else {
        some<kMostRows, 1>(f, rows, sums + n * kPanel);
      }
    }
  }

 private:
  struct Factors {
    const float* x;
    const float* w;        // [panels][kBlock][16]
    int64_t depth, first;  // elements, of which the first is that of the layer
    int64_t slot;
  };

  // to[k][16] of a panel.
  void decode(int64_t panel, int64_t begin, int64_t end, float* to) const {
    Columns<kScheme, kHasZero> columns[kRegisters];
    for (int c = 0; c < kRegisters; ++c) columns[c] = {p_, panel * kPanel + c * kWide};
    each_group<kScheme>(p_, begin, end, [&](int64_t first, int64_t last, int64_t group) {
      for (auto& column : columns) column.begin_group(group);
      for (int64_t k = first; k < last; k += kEight, to += kEight * kPanel)
        for (int c = 0; c < kRegisters; ++c)
          columns[c].eight(k / kEight, [&](int j, V w) { Floats::store(to + j * kPanel + c * kWide, w); });
    });
  }

  // As many rows at a time as there are, then half as many.
  template <int kRows, int kPanels>
  void some(Factors f, int64_t rows, float* sums) const {
    for (; rows >= kRows; rows -= kRows, f.x += kRows * kBlockStride, sums += kRows * kSumsRow)
      product<kRows, kPanels>(f, sums);
    if constexpr (kRows > 1) some<kRows / 2, kPanels>(f, rows, sums);
  }

  // sums[kRows][32] (+)= x w
  template <int kRows, int kPanels>
  void product(const Factors& f, float* sums) const {
    constexpr int kColumns = kPanels * kRegisters;
    each_group<kScheme>(p_, f.first, f.first + f.depth, [&](int64_t begin, int64_t end, int64_t group) {
      V sum[kRows][kColumns];
      const int64_t k = begin - f.first;
      multiply<kRows, kPanels>(f.x + k, f.w + k * kPanel, end - begin, sum);
      for (int c = 0; c < kColumns; ++c) {
        V scale = splat<V>(0.0f);
        if constexpr (kScheme == Scheme::int4)
          scale = Floats::load(p_.scale + group * p_.epilogue.slots + f.slot + c * kWide);
        for (int r = 0; r < kRows; ++r) {
          float* const total = sums + r * kSumsRow + c * kWide;
          Floats::store(total, joined<kScheme>(sum[r][c], scale, Floats::load(total), begin == 0));
        }
      }
    });
  }

  // By itself, so that the compiler has no reason to keep a sum in memory.
  template <int kRows, int kPanels>
  [[gnu::noinline]] static void multiply(const float* x, const float* w, int64_t depth,
                                         V (&sums)[kRows][kPanels * kRegisters]) {
    constexpr int kColumns = kPanels * kRegisters;
    V sum[kRows][kColumns];
    for (auto& row : sum)
      for (auto& s : row) s = splat<V>(0.0f);
    for (int64_t k = 0; k < depth; ++k, w += kPanel) {
      V columns[kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c)
        columns[c] =
            in_register(Floats::load(w + c / kRegisters * (kBlock * kPanel) + c % kRegisters * kWide));
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const V factor = splat<V>(x[r * kBlockStride + k]);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) sum[r][c] = fma_(factor, columns[c], sum[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kColumns; ++c) sums[r][c] = sum[r][c];
  }

  const Params& p_;
  alignas(64) float weights_[kPair][kBlock * kPanel];
};

// ---- all of it --------------------------------------------------------------------------------------

void write_row(const Params& p, int64_t m, const Row& x) {
  for (int64_t block = 0; block < p.block_count(); ++block) {
    const int64_t k = block * kBlock, count = std::min<int64_t>(kBlock, p.epilogue.inner - k);
    float* const to = p.block_of(block, m);
    load_run(x.data, x.dtype, x.at + k * x.element, x.element, count, to);
    std::fill(to + count, to + round_up(count, kEight), 0.0f);
  }
}

template <Scheme kScheme, bool kHasZero>
void run_few(const Params& p, const Team& team) {
  each_block(p, team, kFewRows, 1, [&](int64_t, int64_t rows, int64_t panel, int64_t panels) {
    Few<kScheme, kHasZero> few(p);
    const int64_t end = panel + panels;
    if constexpr (kFewRows >= 8)
      if (rows > 4) return few.template run<8>(panel, end);
    if constexpr (kFewRows >= 4) {
      if (rows > 2) return few.template run<4>(panel, end);
      if (rows > 1) return few.template run<2>(panel, end);
    }
    few.template run<1>(panel, end);
  });
}

template <Scheme kScheme, bool kHasZero>
void run_many(const Params& p, const Team& team) {
  using Kernel = Many<kScheme, kHasZero>;
  each_block(p, team, Kernel::kRowsOfBlock, kMostRows,
             [&](int64_t first, int64_t rows, int64_t panel, int64_t panels) {
               Passes<Kernel> passes(p);
               passes(first, rows, panel, panel + panels);
             });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  widen_all(p, team, [&p](int64_t m, const Row& x) { write_row(p, m, x); });
  with_scheme(p, [&]<Scheme kScheme, bool kHasZero>(std::integral_constant<Scheme, kScheme>,
                                                    std::bool_constant<kHasZero>) {
    p.epilogue.rows <= kFewRows ? run_few<kScheme, kHasZero>(p, team) : run_many<kScheme, kHasZero>(p, team);
  });
}

}  // namespace fastdiff::weight_linear
