// SPDX-License-Identifier: Apache-2.0
// The epilogue on the CPU: its vectors as float32, the narrow products of the low-rank branch, and what
// becomes of a run of sums. For *_cpu.cpp files and their kin.
#pragma once

#include <algorithm>

#include "core/runs.h"
#include "quant/epilogue.h"

namespace fastdiff::quant {
namespace {

using Floats = Lanes<float>;
using FloatLanes = Floats::V;

inline float element_of(const Vectors& v, int64_t row, int64_t n) {
  return load_as<float>(v.data, v.dtype, row * v.row + n * v.element);
}

// ---- once for a call
// ---------------------------------------------------------------------------------------

// body(n, count, slot) for columns n ... n + count - 1, which have neighbouring slots: up to a panel of them.
template <class Body>
void each_panel(const Epilogue& e, const Body& body) {
  const int64_t half = e.gated ? e.columns / 2 : e.columns;
  for (int64_t first = 0; first < half; first += kPanel)
    for (int64_t n = first; n < e.columns; n += half)
      body(n, std::min<int64_t>(kPanel, half - first), slot_of(n, e.columns, e.gated));
}

// to[slot] = v[column]; slots that are no column are 0.
inline void spread(const Epilogue& e, const Vectors& v, float* to) {
  std::fill_n(to, e.slots, 0.0f);
  each_panel(e, [&](int64_t n, int64_t count, int64_t slot) {
    load_run(v.data, v.dtype, n * v.element, v.element, count, to + slot);
  });
}

// Columns [begin, end) of U become rows, in blocks that are read along the rows of U.
inline void turn_up(const Epilogue& e, int64_t begin, int64_t end) {
  const Vectors& v = e.up_in;
  alignas(64) float block[kPanel][kRankUnit];
  std::fill_n(e.up + begin * e.slots, (end - begin) * e.slots, 0.0f);
  for (; begin < end; begin += kRankUnit) {
    const int64_t ranks = std::min<int64_t>(kRankUnit, end - begin);
    each_panel(e, [&](int64_t n, int64_t count, int64_t slot) {
      for (int64_t j = 0; j < count; ++j)
        load_run(v.data, v.dtype, (n + j) * v.row + begin * v.element, v.element, ranks, block[j]);
      for (int64_t r = 0; r < ranks; ++r)
        for (int64_t j = 0; j < count; ++j) e.up[(begin + r) * e.slots + slot + j] = block[j][r];
    });
  }
}

// Rows [begin, end) of V^T become columns.
inline void turn_down(const Epilogue& e, int64_t begin, int64_t end) {
  const Vectors& v = e.down_in;
  alignas(64) float run[kPiece];
  for (int64_t r = begin; r < end; ++r)
    for (int64_t k = 0; k < e.inner; k += kPiece) {
      const int64_t count = std::min<int64_t>(kPiece, e.inner - k);
      load_run(v.data, v.dtype, r * v.row + k * v.element, v.element, count, run);
      for (int64_t j = 0; j < count; ++j) e.down[(k + j) * e.rank_padded + r] = run[j];
    }
}

// Part `part` of `parts` of the vectors that kernels read as float32.
inline void widen_vectors(const Epilogue& e, int64_t part, int64_t parts) {
  if (part == 0 && e.bias != nullptr) spread(e, e.bias_in, e.bias);
  if (part == 0 && e.gate != nullptr)
    for (int64_t b = 0; b < e.samples_of_gate(); ++b)
      load_run(e.gate_in.data, e.gate_in.dtype, b * e.gate_in.row, e.gate_in.element, e.outputs,
               e.gate + b * e.outputs);
  const int64_t begin = e.rank * part / parts, end = e.rank * (part + 1) / parts;
  turn_up(e, begin, end);
  turn_down(e, begin, end);
  if (part == 0)
    for (int64_t r = e.rank; r < e.rank_padded; ++r)
      for (int64_t k = 0; k < e.inner; ++k) e.down[k * e.rank_padded + r] = 0.0f;
}

// p of kRows rows x[r][k]: sums over 64 elements in their order, and over those sums in theirs, so that the
// bits do not depend on the registers. Two registers' lanes at a time.
template <int kRows>
void shrink_rows(const Epilogue& e, const float* const (&x)[kRows], int64_t m) {
  constexpr int kWide = Floats::width;
  for (int64_t c = 0; c < e.rank_padded; c += kWide) {
    FloatLanes total[kRows];
    for (auto& t : total) t = splat<FloatLanes>(0.0f);
    for (int64_t first = 0; first < e.inner; first += kPiece) {
      FloatLanes sum[kRows];
      for (auto& s : sum) s = splat<FloatLanes>(0.0f);
      const int64_t end = std::min(e.inner, first + kPiece);
      for (int64_t k = first; k < end; ++k) {
        const FloatLanes v = Floats::load(e.down + k * e.rank_padded + c);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r] = fma_(splat<FloatLanes>(x[r][k]), v, sum[r]);
      }
      for (int r = 0; r < kRows; ++r) total[r] = add(total[r], sum[r]);
    }
    for (int r = 0; r < kRows; ++r) Floats::store(e.shrunk + (m + r) * e.rank_padded + c, total[r]);
  }
  if (e.gates_in.data == nullptr) return;
  for (int r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < e.rank; ++c)
      e.shrunk[(m + r) * e.rank_padded + c] *= element_of(e.gates_in, (m + r) / e.rows_of_sample, c);
}

// ---- for each run of sums
// ------------------------------------------------------------------------------------

// y of rows m ... m + kRows - 1 at the columns of kPanels panels from `slot` on; `sums`: theirs, as float32.
// Of several rows at a time, because those share what is read of the vectors and of U.
template <int kPanels>
class Finish {
  static constexpr int kWide = Floats::width, kSlots = kPanels * kPanel;
  static constexpr int kRegisters = kSlots / kWide < 2 ? 1 : 2;  // of a row at a time

 public:
  static constexpr int kMostRows = 4;

  explicit Finish(const Epilogue& e) : e_(e) {}

  void operator()(int64_t m, int64_t slot, const float* sums) { rows<1>(m, slot, sums); }

  // sums [kRows][kSlots]
  template <int kRows>
  void rows(int64_t m, int64_t slot, const float* sums) {
    for (int c = 0; c < kSlots; c += kRegisters * kWide) linear<kRows>(m, slot + c, sums + c, h_[0] + c);
    for (int r = 0; r < kRows; ++r) {
      if (e_.gated) {
        gate_by_panel(h_[r]);
        write(m + r, slot / 2, kSlots / 2, h_[r]);
      } else {
        write(m + r, slot, kSlots, h_[r]);
      }
    }
  }

  // Asks early for the memory of such a row: a store that misses the caches holds up the ones behind it.
  void expect(int64_t m, int64_t slot) const {
    const int64_t at = e_.y.at(m) + (e_.gated ? slot / 2 : slot) * e_.y.element;
    const char* const y = static_cast<const char*>(e_.y.data) + at * size_of(e_.y.dtype);
    for (int64_t line = 0; line < kSlots * size_of(e_.y.dtype); line += 64) __builtin_prefetch(y + line, 1);
  }

 private:
  // Two registers of each row; those that are not gated are activated.
  template <int kRows>
  void linear(int64_t m, int64_t slot, const float* sums, float* to) const {
    FloatLanes h[kRows][kRegisters];
#pragma GCC unroll 2
    for (int c = 0; c < kRegisters; ++c) {
      const int64_t at = slot + c * kWide;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        h[r][c] = Floats::load(sums + r * kSlots + c * kWide);
        if (e_.row_scale != nullptr) h[r][c] = mul(h[r][c], splat<FloatLanes>(e_.row_scale[m + r]));
        if (e_.scale != nullptr && e_.bias != nullptr) {
          h[r][c] = fma_(h[r][c], Floats::load(e_.scale + at), Floats::load(e_.bias + at));
        } else if (e_.scale != nullptr) {
          h[r][c] = mul(h[r][c], Floats::load(e_.scale + at));
        } else if (e_.bias != nullptr) {
          h[r][c] = add(h[r][c], Floats::load(e_.bias + at));
        }
      }
    }
    const float* const p = e_.shrunk + m * e_.rank_padded;
    for (int64_t i = 0; i < e_.rank; ++i) {
      const float* const up = e_.up + i * e_.slots + slot;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const FloatLanes factor = splat<FloatLanes>(p[r * e_.rank_padded + i]);
#pragma GCC unroll 2
        for (int c = 0; c < kRegisters; ++c) h[r][c] = fma_(factor, Floats::load(up + c * kWide), h[r][c]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kRegisters; ++c)
        Floats::store(to + r * kSlots + c * kWide, e_.gated ? h[r][c] : activate(e_.activation, h[r][c]));
  }

  void gate_by_panel(float* row) const {
    if constexpr (kPanels % 2 == 0)  // gated layers have panels in pairs
      for (int pair = 0; pair < kPanels / 2; ++pair)
        for (int c = 0; c < kPanel; c += kWide) {
          const float* const h = row + 2 * pair * kPanel + c;
          const FloatLanes act = activate(e_.activation, Floats::load(h + kPanel));
          Floats::store(row + pair * kPanel + c, mul(Floats::load(h), act));
        }
  }

  void write(int64_t m, int64_t column, int count, float* h) const {
    const int there = static_cast<int>(std::min<int64_t>(count, e_.outputs - column));
    if (e_.residual.data != nullptr || e_.gate != nullptr) add_residual(m, column, there, h);
    const int64_t at = e_.y.at(m) + column * e_.y.element;
    with_storage<float>(e_.y.dtype, [&]<class S>(S) {
      S* const y = static_cast<S*>(e_.y.data) + at;
      if (e_.y.element != 1) {
        for (int c = 0; c < there; ++c) y[c * e_.y.element] = narrow<S>(h[c]);
        return;
      }
      int c = 0;
      for (; c + kWide <= there; c += kWide) Floats::store(y + c, Floats::load(h + c));
      for (; c < there; ++c) y[c] = narrow<S>(h[c]);
    });
  }

  // h := residual + gate h, of what there is
  void add_residual(int64_t m, int64_t column, int there, float* h) const {
    alignas(64) float r[kSlots], g[kSlots];
    std::fill_n(r, kSlots, 0.0f);
    if (e_.residual.data != nullptr)
      load_run(e_.residual.data, e_.residual.dtype, e_.residual.at(m) + column * e_.residual.element,
               e_.residual.element, there, r);
    std::fill_n(g, kSlots, 1.0f);
    if (e_.gate != nullptr) {
      const int64_t sample = e_.samples_of_gate() == 1 ? 0 : m / e_.rows_of_sample;
      std::copy_n(e_.gate + sample * e_.outputs + column, there, g);
    }
    for (int c = 0; c < kSlots; c += kWide) {
      const FloatLanes value = Floats::load(h + c), gate = Floats::load(g + c);
      Floats::store(h + c,
                    e_.residual.data == nullptr ? mul(value, gate) : fma_(value, gate, Floats::load(r + c)));
    }
  }

  const Epilogue& e_;
  alignas(64) float h_[kMostRows][kSlots];
};

}  // namespace
}  // namespace fastdiff::quant
