// SPDX-License-Identifier: Apache-2.0
// lowrank_apply on the CPU, compiled once per ISA.
//
// A block of rows goes through both products while it is in the caches. Both factors are rearranged in panels
// first, [steps][a few registers of columns], so that a tile of C is a dozen chains of fused multiply-adds
// with the rows' elements broadcast. For few rows the factors are what takes time: then threads share the
// chunks of K, and after that the columns of y, and each reads its part of a factor once.
#include "quant/lowrank_apply/lowrank_apply_rows.h"

namespace fastdiff::lowrank_apply {
namespace {

#if defined(__AVX512F__)
constexpr int kMostRegisters = 4, kSums = 24;  // of 32 registers
#else
constexpr int kMostRegisters = 2, kSums = 12;  // of 16
#endif
constexpr int kBlockRows = 24;  // a multiple of every tile's rows

template <class T>
constexpr int kPanelWidth = kMostRegisters * Lanes<T>::width;

// ---- products: C[rows][registers] (+)= A[rows][steps] B[steps][registers] ---------------------------

template <class T>
struct Panel {
  const T* data;
  int64_t step;  // elements between steps
};

template <int kRegisters, int kRows, class T>
[[gnu::always_inline]] inline void tile(const T* a, int64_t a_row, Panel<T> b, int steps, T* c, int64_t c_row,
                                        bool is_kept) {
  using L = Lanes<T>;
  using V = typename L::V;
  V sum[kRows][kRegisters];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) sum[r][n] = splat<V>(T(0));
  for (int s = 0; s < steps; ++s, b.data += b.step) {
    V x[kRegisters];
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) x[n] = in_register(L::load(b.data + n * L::width));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const V y = in_register(splat<V>(a[r * a_row + s]));
#pragma GCC unroll 4
      for (int n = 0; n < kRegisters; ++n) sum[r][n] = fma_(y, x[n], sum[r][n]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      T* const at = c + r * c_row + n * L::width;
      L::store(at, add(is_kept ? L::load(at) : splat<V>(T(0)), sum[r][n]));
    }
}

template <int kRegisters, int kRows, class T>
void tiles(const T* a, int64_t a_row, Panel<T> b, int steps, T* c, int64_t c_row, bool is_kept, int rows) {
  for (; rows >= kRows; rows -= kRows, a += kRows * a_row, c += kRows * c_row)
    tile<kRegisters, kRows>(a, a_row, b, steps, c, c_row, is_kept);
  if constexpr (kRows > 1)
    tiles<kRegisters, (kRows > 6   ? 6
                       : kRows > 4 ? 4
                                   : kRows / 2)>(a, a_row, b, steps, c, c_row, is_kept, rows);
}

// How many registers `columns` take, of those that a panel may have.
template <class T>
int registers_of(int columns) {
  constexpr int w = Lanes<T>::width;
  return columns <= w ? 1 : columns <= 2 * w ? 2 : kMostRegisters;
}

// A chunk's product to C, if it is the first, or onto it.
template <class T>
void product(const T* a, int64_t a_row, Panel<T> b, int steps, T* c, int64_t c_row, bool is_kept, int rows,
             int columns) {
  const int registers = registers_of<T>(columns);
  if (registers == 1) return tiles<1, 12>(a, a_row, b, steps, c, c_row, is_kept, rows);
  if (registers == 2) return tiles<2, std::min(12, kSums / 2)>(a, a_row, b, steps, c, c_row, is_kept, rows);
  if constexpr (kMostRegisters == 4) tiles<4, kSums / 4>(a, a_row, b, steps, c, c_row, is_kept, rows);
}

// ---- factors in panels -----------------------------------------------------------------------------

// Lane l of register i becomes lane i of register l: each round turns the bits of an element's number by one.
template <class V, int w>
[[gnu::always_inline]] inline void transpose(V (&x)[w]) {
  V y[w];
#pragma GCC unroll 4
  for (int round = 1; round < w; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < w / 2; ++i) interleave(x[i], x[i + w / 2], y[2 * i], y[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) x[i] = y[i];
  }
}

// Steps [first, first + steps) of some columns, into `memory` or where they are; steps <= kChunk.
template <class T>
Panel<T> panel_of(const Factor& f, int64_t first, int steps, int64_t column, int columns, T* memory) {
  using L = Lanes<T>;
  using V = typename L::V;
  constexpr int w = L::width;
  const int width = registers_of<T>(columns) * w;
  const int64_t at = first * f.step + column * f.column;
  if (f.column == 1) {
    if (f.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32) && columns == width)
      return {static_cast<const T*>(f.data) + at, f.step};
    for (int s = 0; s < steps; ++s) {
      load_run(f.data, f.dtype, at + s * f.step, 1, columns, memory + s * width);
      std::fill(memory + s * width + columns, memory + (s + 1) * width, T(0));
    }
    return {memory, width};
  }
  alignas(64) T rows[w][kChunk];
  for (int c = 0; c < width; c += w) {
    for (int i = 0; i < w; ++i) {
      const bool is_there = c + i < columns;
      if (is_there) load_run(f.data, f.dtype, at + (c + i) * f.column, f.step, steps, rows[i]);
      std::fill(rows[i] + (is_there ? steps : 0), rows[i] + rounded_up(steps, w), T(0));
    }
    for (int s = 0; s < steps; s += w) {
      V x[w];
      for (int i = 0; i < w; ++i) x[i] = L::load(rows[i] + s);
      transpose(x);
      for (int i = 0; i < w; ++i) L::store(memory + (s + i) * width + c, x[i]);
    }
  }
  return {memory, width};
}

// ---- rows ------------------------------------------------------------------------------------------

// A thread's part of the work, and its memory.
template <class T>
class Worker : public RowBlock<T, kBlockRows, kPanelWidth<T>> {
  using Base = RowBlock<T, kBlockRows, kPanelWidth<T>>;
  using Base::p_, Base::p_row_, Base::rows_, Base::x_at_, Base::y_;

 public:
  static constexpr int kWidth = kPanelWidth<T>;

  using Base::Base;

  // sums[rows][rank] (+)= x down^T over one chunk of K; down(first column, columns) gives a panel.
  template <class Down>
  void shrink(int64_t chunk, bool is_kept, T* sums, const Down& down) {
    const int64_t first = chunk * kChunk;
    const int steps = static_cast<int>(std::min<int64_t>(kChunk, p_.inputs - first));
    for (int n = 0; n < rows_; ++n)
      load_run(p_.x.at.data, p_.x.at.dtype, x_at_[n] + first * p_.x.column, p_.x.column, steps, x_[n]);
    each_panel(p_.rank, [&](int64_t j, int columns) {
      product(x_[0], kChunk, down(j, columns), steps, sums + j, p_row_, is_kept, rows_, columns);
    });
  }

  // Columns [column, column + columns) of y; up(first step, steps) gives a panel.
  template <class Up>
  void expand(int64_t column, int columns, const T* p, const Up& up) {
    if (p_.rank == 0) std::fill_n(y_[0], rows_ * kWidth, T(0));
    for (int64_t j = 0; j < p_.rank; j += kChunk) {
      const int steps = static_cast<int>(std::min<int64_t>(kChunk, p_.rank - j));
      product(p + j, p_row_, up(j, steps), steps, y_[0], kWidth, j > 0, rows_, columns);
    }
    this->finish(column, columns);
  }

  template <class Body>
  static void each_panel(int64_t columns, const Body& body) {
    for (int64_t j = 0; j < columns; j += kWidth)
      body(j, static_cast<int>(std::min<int64_t>(kWidth, columns - j)));
  }

  T* panel_memory() { return panel_; }

 private:
  alignas(64) T x_[kBlockRows][kChunk];
  alignas(64) T panel_[kChunk * kWidth];
};

template <class T>
class Run {
  using W = Worker<T>;
  static constexpr int kWidth = W::kWidth;

 public:
  Run(const Params& params, T* scratch, const Team& team)
      : params_(params),
        p_row_(rounded_up(params.rank, kPanel)),
        p_(scratch),
        rest_(scratch + p_numel(params)),
        team_(team_for(params, team)) {}

  // Factors are copied once; a thread takes a block of rows through both products.
  void by_rows() {
    T *const down = rest_, *const up = rest_ + panels_numel(params_.inputs, params_.rank);
    copy(params_.down, params_.inputs, params_.rank, down);
    copy(params_.up, params_.rank, params_.outputs, up);
    each_item(blocks(params_.rows()), [&](W& worker, int64_t block) {
      const int64_t row = block * kBlockRows;
      const int rows = static_cast<int>(std::min<int64_t>(kBlockRows, params_.rows() - row));
      T* const p = p_ + row * p_row_;
      worker.enter(row, rows);
      if (params_.inputs == 0) std::fill_n(p, rows * p_row_, T(0));
      for (int64_t chunk = 0; chunk < chunks_of(params_.inputs); ++chunk)
        worker.shrink(chunk, chunk > 0, p, [&](int64_t j, int columns) {
          return panel(down, params_.inputs, j, columns, chunk * kChunk);
        });
      worker.gate(p);
      W::each_panel(params_.outputs, [&](int64_t n, int columns) {
        worker.expand(n, columns, p, [&](int64_t j, int) { return panel(up, params_.rank, n, columns, j); });
      });
    });
  }

  // Factors are read where they are, a chunk of K or a panel of y's columns by one thread.
  void by_columns(int64_t first, int64_t rows) {
    const int64_t chunks = chunks_of(params_.inputs);
    T* const p = p_ + first * p_row_;
    each_item(chunks, [&](W& worker, int64_t chunk) {
      T* const sums = rest_ + chunk * rows * p_row_;
      each_block(rows, [&](int64_t row, int count) {
        worker.enter(first + row, count);
        worker.shrink(chunk, false, sums + row * p_row_, [&](int64_t j, int columns) {
          const int64_t k = chunk * kChunk;
          return panel_of(params_.down, k, static_cast<int>(std::min<int64_t>(kChunk, params_.inputs - k)), j,
                          columns, worker.panel_memory());
        });
      });
    });
    each_item(blocks(rows), [&](W& worker, int64_t block) {
      const int64_t row = block * kBlockRows;
      const int count = static_cast<int>(std::min<int64_t>(kBlockRows, rows - row));
      T* const to = p + row * p_row_;
      std::fill_n(to, count * p_row_, T(0));
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const T* const sums = rest_ + (chunk * rows + row) * p_row_;
        for (int64_t n = 0; n < count * p_row_; ++n) to[n] = to[n] + sums[n];
      }
      worker.enter(first + row, count);
      worker.gate(to);
    });
    each_item((params_.outputs + kWidth - 1) / kWidth, [&](W& worker, int64_t item) {
      const int64_t n = item * kWidth;
      const int columns = static_cast<int>(std::min<int64_t>(kWidth, params_.outputs - n));
      each_block(rows, [&](int64_t row, int count) {
        worker.enter(first + row, count);
        worker.expand(n, columns, p + row * p_row_, [&](int64_t j, int steps) {
          return panel_of(params_.up, j, steps, n, columns, worker.panel_memory());
        });
      });
    });
  }

 private:
  static int64_t blocks(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

  template <class Body>
  static void each_block(int64_t rows, const Body& body) {
    for (int64_t row = 0; row < rows; row += kBlockRows)
      body(row, static_cast<int>(std::min<int64_t>(kBlockRows, rows - row)));
  }

  // body(worker, 0) ... body(worker, items - 1).
  template <class Body>
  void each_item(int64_t items, const Body& body) const {
    lowrank_apply::each_item(team_, items, [this] { return W(params_); }, body);
  }

  // A copied factor's panels follow each other, all but the last of them kWidth wide.
  static Panel<T> panel(const T* copied, int64_t steps, int64_t column, int columns, int64_t first) {
    const int width = registers_of<T>(columns) * Lanes<T>::width;
    return {copied + column * rounded_up(steps, kMostLanes) + first * width, width};
  }

  void copy(const Factor& factor, int64_t steps, int64_t columns, T* to) const {
    const int64_t chunks = chunks_of(steps), panels = (columns + kWidth - 1) / kWidth;
    each_item(panels * chunks, [&](W&, int64_t item) {
      const int64_t column = item / chunks * kWidth, first = item % chunks * kChunk;
      const int count = static_cast<int>(std::min<int64_t>(kWidth, columns - column));
      const int some = static_cast<int>(std::min<int64_t>(kChunk, steps - first));
      T* const at = const_cast<T*>(panel(to, steps, column, count, first).data);
      const Panel<T> got = panel_of(factor, first, some, column, count, at);
      if (got.data == at) return;
      for (int s = 0; s < some; ++s) std::copy_n(got.data + s * got.step, count, at + int64_t{s} * count);
    });
  }

  const Params& params_;
  const int64_t p_row_;
  T *const p_, *const rest_;
  const Team& team_;
};

template <class T>
void run_as(const Params& params, T* scratch, const Team& team) {
  Run<T> run(params, scratch, team);
  if (!is_streamed(params)) return run.by_rows();
  for (int64_t row = 0; row < params.rows(); row += kFewRows)
    run.by_columns(row, std::min(kFewRows, params.rows() - row));
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.wide) {
    run_as(params, static_cast<double*>(scratch), team);
  } else {
    run_as(params, static_cast<float*>(scratch), team);
  }
}

}  // namespace fastdiff::lowrank_apply
