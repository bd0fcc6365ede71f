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

// to[slot] = v[row, column]; slots that are no column are 0.
inline void spread(const Epilogue& e, const Vectors& v, int64_t row, float* to) {
  std::fill_n(to, e.slots, 0.0f);
  const int64_t half = e.gated ? e.columns / 2 : e.columns;
  for (int64_t first = 0; first < half; first += kPanel) {
    const int64_t count = std::min<int64_t>(kPanel, half - first);
    for (int64_t n = first; n < e.columns; n += half)
      load_run(v.data, v.dtype, row * v.row + n * v.element, v.element, count,
               to + slot_of(n, e.columns, e.gated));
  }
}

// Part `part` of `parts` of the vectors that kernels read as float32.
inline void widen_vectors(const Epilogue& e, int64_t part, int64_t parts) {
  if (part == 0 && e.bias != nullptr) spread(e, e.bias_in, 0, e.bias);
  if (part == 0 && e.gate != nullptr)
    for (int64_t b = 0; b < e.samples_of_gate(); ++b)
      load_run(e.gate_in.data, e.gate_in.dtype, b * e.gate_in.row, e.gate_in.element, e.outputs,
               e.gate + b * e.outputs);
  for (int64_t r = e.rank * part / parts; r < e.rank * (part + 1) / parts; ++r) {
    // A column of U; a row of V^T becomes a column.
    const Vectors column{e.up_in.data, e.up_in.dtype, e.up_in.element, e.up_in.row};
    spread(e, column, r, e.up + r * e.slots);
    for (int64_t k = 0; k < e.inner; ++k) e.down[k * e.rank_padded + r] = element_of(e.down_in, r, k);
  }
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

// y of row m at the columns of kPanels panels from `slot` on; `sums`: theirs, as float32.
template <int kPanels>
class Finish {
  static constexpr int kWide = Floats::width, kSlots = kPanels * kPanel;

 public:
  explicit Finish(const Epilogue& e) : e_(e) {}

  void operator()(int64_t m, int64_t slot, const float* sums) {
    if (e_.gated) {
      for (int c = 0; c < kSlots; c += kWide) Floats::store(h_ + c, linear(m, slot + c, sums + c));
      gate_by_panel();
      write(m, slot / 2, kSlots / 2);
    } else {
#pragma GCC unroll 2
      for (int c = 0; c < kSlots; c += kWide)
        Floats::store(h_ + c, activate(e_.activation, linear(m, slot + c, sums + c)));
      write(m, slot, kSlots);
    }
  }

  // Asks early for the memory of such a run: a store that misses the caches holds up the ones behind it.
  void expect(int64_t m, int64_t slot) const {
    const int64_t at = e_.y.at(m) + (e_.gated ? slot / 2 : slot) * e_.y.element;
    const char* const y = static_cast<const char*>(e_.y.data) + at * size_of(e_.y.dtype);
    for (int64_t line = 0; line < kSlots * size_of(e_.y.dtype); line += 64) __builtin_prefetch(y + line, 1);
  }

 private:
  FloatLanes linear(int64_t m, int64_t slot, const float* sums) const {
    FloatLanes h = Floats::load(sums);
    if (e_.row_scale != nullptr) h = mul(h, splat<FloatLanes>(e_.row_scale[m]));
    if (e_.scale != nullptr && e_.bias != nullptr) {
      h = fma_(h, Floats::load(e_.scale + slot), Floats::load(e_.bias + slot));
    } else if (e_.scale != nullptr) {
      h = mul(h, Floats::load(e_.scale + slot));
    } else if (e_.bias != nullptr) {
      h = add(h, Floats::load(e_.bias + slot));
    }
    const float* const p = e_.shrunk + m * e_.rank_padded;
    for (int64_t r = 0; r < e_.rank; ++r)
      h = fma_(splat<FloatLanes>(p[r]), Floats::load(e_.up + r * e_.slots + slot), h);
    return h;
  }

  void gate_by_panel() {
    if constexpr (kPanels % 2 == 0)  // gated layers have panels in pairs
      for (int pair = 0; pair < kPanels / 2; ++pair)
        for (int c = 0; c < kPanel; c += kWide) {
          const float* const h = h_ + 2 * pair * kPanel + c;
          const FloatLanes act = activate(e_.activation, Floats::load(h + kPanel));
          Floats::store(h_ + pair * kPanel + c, mul(Floats::load(h), act));
        }
  }

  void write(int64_t m, int64_t column, int count) {
    const int there = static_cast<int>(std::min<int64_t>(count, e_.outputs - column));
    if (e_.residual.data != nullptr || e_.gate != nullptr) add_residual(m, column, there);
    const int64_t at = e_.y.at(m) + column * e_.y.element;
    with_storage<float>(e_.y.dtype, [&]<class S>(S) {
      S* const y = static_cast<S*>(e_.y.data) + at;
      if (e_.y.element != 1) {
        for (int c = 0; c < there; ++c) y[c * e_.y.element] = narrow<S>(h_[c]);
        return;
      }
      int c = 0;
      for (; c + kWide <= there; c += kWide) Floats::store(y + c, Floats::load(h_ + c));
      for (; c < there; ++c) y[c] = narrow<S>(h_[c]);
    });
  }

  // h := residual + gate h, of what there is
  void add_residual(int64_t m, int64_t column, int there) {
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
      const FloatLanes h = Floats::load(h_ + c), gate = Floats::load(g + c);
      Floats::store(h_ + c, e_.residual.data == nullptr ? mul(h, gate) : fma_(h, gate, Floats::load(r + c)));
    }
  }

  const Epilogue& e_;
  alignas(64) float h_[kSlots];
};

}  // namespace
}  // namespace fastdiff::quant
