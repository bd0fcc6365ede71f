// SPDX-License-Identifier: Apache-2.0
// What all instruction sets have in common on the CPU: vectors and rows as float32 before the products, and
// how the work is cut.
#pragma once

#include "quant/epilogue_cpu.h"
#include "quant/rows_cpu.h"
#include "quant/weight_linear/weight_linear_math.h"

namespace fastdiff::weight_linear {
namespace {

using namespace quant;

inline constexpr int kPair = 2;  // panels, whose columns are finished together
inline constexpr int kSumsRow = kPair * kPanel;

// A row as float32: where it lies, if it is one side by side; else a copy.
inline const float* floats_of(const Params& p, int64_t m, float* copy) {
  const int64_t at = p.x.at(m);
  if (p.x.dtype == DType::f32 && p.x.element == 1) return static_cast<const float*>(p.x.data) + at;
  if (p.x.dtype == DType::u8) {
    for (int64_t k = 0; k < p.epilogue.inner; ++k) copy[k] = given(p, at + k * p.x.element);
  } else {
    load_run(p.x.data, p.x.dtype, at, p.x.element, p.epilogue.inner, copy);
  }
  return copy;
}

// A row as the products take it.
struct Row {
  const void* data;
  DType dtype;
  int64_t at, element;
};

// A row rounded to e4m3, in `buffer`; its scale is stored. Of one with NaN or infinity, which no scale fits,
// the scale is NaN and all else 0.
inline Row rounded_row(const Params& p, int64_t m, float* buffer) {
  const float* const x = floats_of(p, m, buffer);
  const int64_t count = p.epilogue.inner;
  float least = 0.0f, greatest = 0.0f;
  if (p.x_scale.data == nullptr) widen_range(x, count, least, greatest);
  const RowScale s = scale_of_row(p, m, std::max(-least, greatest));
  FloatLanes rest = splat<FloatLanes>(0.0f);
  float last = 0.0f;
  int64_t k = 0;
  for (; k + Floats::width <= count; k += Floats::width) {
    const FloatLanes q = nearest_e4m3(mul(Floats::load(x + k), splat<FloatLanes>(s.inverse)));
    rest = fma_(q, splat<FloatLanes>(0.0f), rest);  // NaN once any is
    Floats::store(buffer + k, q);
  }
  for (; k < count; ++k) {
    buffer[k] = nearest_e4m3(x[k] * s.inverse);
    last = fma_(buffer[k], 0.0f, last);
  }
  alignas(64) float rests[Floats::width];
  Floats::store(rests, rest);
  for (const float r : rests) last += r;
  const bool is_number = last == 0.0f;
  if (!is_number) std::fill_n(buffer, count, 0.0f);
  p.row_scale[m] = is_number ? s.scale : last;
  return {buffer, DType::f32, 0, 1};
}

inline Row row_of(const Params& p, int64_t m, float* buffer) {
  return p.rounds ? rounded_row(p, m, buffer) : Row{p.x.data, p.x.dtype, p.x.at(m), p.x.element};
}

// The products of rows [begin, end) with V.
inline void shrink(const Params& p, int64_t begin, int64_t end, float* buffer) {
  for (int64_t m = begin; m < end; m += kRowUnit) {
    const int count = static_cast<int>(std::min(kRowUnit, end - m));
    const float* x[kRowUnit];
    for (int r = 0; r < count; ++r) {
      float* const own = buffer + r * p.epilogue.inner;
      x[r] = floats_of(p, m + r, own);
      if (p.x.dtype == DType::u8)
        for (int64_t k = 0; k < p.epilogue.inner; ++k) own[k] *= p.row_scale[m + r];
    }
    if (count == kRowUnit) {
      shrink_rows<kRowUnit>(p.epilogue, x, m);
    } else {
      for (int r = 0; r < count; ++r) shrink_rows<1>(p.epilogue, {x[r]}, m + r);
    }
  }
}

// All vectors, then all rows; write(m, row) stores a row as the products want it.
template <class Write>
void widen_all(const Params& p, const Team& team, const Write& write) {
  const Epilogue& e = p.epilogue;
  const int64_t vector_parts = e.rank > 0 ? team.threads : 1;
  each_part(team, vector_parts, [&](int64_t part) { widen_vectors(e, part, vector_parts); });
  const int64_t parts = parts_of_rows(p, team);
  each_part(team, parts, [&](int64_t part) {
    const int64_t units = round_up(e.rows, kRowUnit) / kRowUnit;
    const int64_t begin = units * part / parts * kRowUnit;
    const int64_t end = std::min(e.rows, units * (part + 1) / parts * kRowUnit);
    float* const buffer = p.rows == nullptr ? nullptr : p.rows + part * kRowUnit * e.inner;
    for (int64_t m = begin; m < end; ++m) write(m, row_of(p, m, buffer));
    if (e.rank > 0) shrink(p, begin, end, buffer);
  });
}

// Blocks of up to `most` rows, of which `unit` are multiplied together, by runs of pairs of panels, some for
// each thread.
class Blocks {
 public:
  Blocks(const Params& p, const Team& team, int64_t most, int64_t unit)
      : rows_(p.epilogue.rows), panels_(p.epilogue.slots / kPanel), block_(even_block(rows_, most, unit)) {
    const int64_t blocks = (rows_ + block_ - 1) / block_;
    runs_ = std::clamp((4 * team.threads + blocks - 1) / blocks, int64_t{1}, pairs());
    count_ = blocks * runs_;
  }

  int64_t count() const { return count_; }

  // Calls body(row, rows, panel, panels).
  template <class Body>
  void at(int64_t n, const Body& body) const {
    const int64_t first = n / runs_ * block_, run = n % runs_;
    const int64_t begin = pairs() * run / runs_ * kPair;
    const int64_t end = std::min(panels_, pairs() * (run + 1) / runs_ * kPair);
    body(first, std::min(block_, rows_ - first), begin, end - begin);
  }

 private:
  int64_t pairs() const { return round_up(panels_, kPair) / kPair; }

  int64_t rows_, panels_, block_, runs_ = 1, count_ = 0;
};

template <class Body>
void each_block(const Params& p, const Team& team, int64_t most, int64_t unit, const Body& body) {
  const Blocks blocks(p, team, most, unit);
  each_part(team, blocks.count(), [&](int64_t n) { blocks.at(n, body); });
}

// Calls body(kScheme, kHasZero) as constants.
template <class Body>
void with_scheme(const Params& p, const Body& body) {
  using std::bool_constant, std::integral_constant;
  switch (p.scheme) {
    case Scheme::int8:
      return p.integers != nullptr ? body(integral_constant<Scheme, Scheme::int8>{}, bool_constant<true>{})
                                   : body(integral_constant<Scheme, Scheme::int8>{}, bool_constant<false>{});
    case Scheme::int4:
      return p.zero_point != nullptr
                 ? body(integral_constant<Scheme, Scheme::int4>{}, bool_constant<true>{})
                 : body(integral_constant<Scheme, Scheme::int4>{}, bool_constant<false>{});
    case Scheme::fp8:
      return body(integral_constant<Scheme, Scheme::fp8>{}, bool_constant<false>{});
    case Scheme::bf16:
      return body(integral_constant<Scheme, Scheme::bf16>{}, bool_constant<false>{});
  }
}

// Rows [first, first + rows) by panels [begin, end): a block along K of the rows stays in the second-level
// cache while some pairs of panels pass, whose decoded weights stay in the first. Kernel::add_block(first,
// rows, panel, panels, k, sums) adds the products of elements [k, k + kBlock) to sums[rows][32], or, from k =
// 0, sets them.
template <class Kernel>
class Passes {
  static constexpr int kPairs = 8;

 public:
  explicit Passes(const Params& p) : p_(p), kernel_(p), pair_(p.epilogue), single_(p.epilogue) {}

  void operator()(int64_t first, int64_t rows, int64_t begin, int64_t end) {
    for (; begin < end; begin += kPairs * kPair) {
      const int64_t last = std::min<int64_t>(end, begin + kPairs * kPair);
      for (int64_t k = 0; k < p_.epilogue.inner; k += kBlock)
        each_pair(begin, last, [&](int64_t panel, int panels, float* sums) {
          kernel_.add_block(first, rows, panel, panels, k, sums);
        });
      // Row by row: the pages of y are many.
      for (int64_t r = 0; r < rows; ++r)
        each_pair(begin, last, [&](int64_t panel, int panels, const float* sums) {
          sums += r * kSumsRow;
          panels == kPair ? pair_(first + r, panel * kPanel, sums) : single_(first + r, panel * kPanel, sums);
        });
    }
  }

 private:
  template <class Body>
  void each_pair(int64_t begin, int64_t end, const Body& body) {
    for (int64_t panel = begin; panel < end; panel += kPair)
      body(panel, static_cast<int>(std::min<int64_t>(kPair, end - panel)), sums_[(panel - begin) / kPair]);
  }

  const Params& p_;
  Kernel kernel_;
  Finish<kPair> pair_;
  Finish<1> single_;
  alignas(64) float sums_[kPairs][Kernel::kRowsOfBlock * kSumsRow];
};

// A register of columns of a panel: eight neighbours along K at a time.
template <Scheme kScheme, bool kHasZero>
class Columns {
  using V = FloatLanes;

 public:
  Columns() = default;
  Columns(const Params& p, int64_t slot)
      : p_(&p),
        slot_(slot),
        words_(p.weight + slot / kPanel * p.panel_bytes + slot % kPanel * 4),
        zero_(splat<V>(0.0f)),
        scale_(zero_) {
    if (kScheme == Scheme::int8 && kHasZero)
      zero_ = float_from_signed(Floats::load_words(reinterpret_cast<const uint32_t*>(p.integers + slot)));
  }

  void begin_group(int64_t group) {
    if constexpr (kScheme == Scheme::int4) {
      const int64_t at = group * p_->epilogue.slots + slot_;
      if constexpr (kHasZero) zero_ = Floats::load(p_->zero_point + at);
      scale_ = Floats::load(p_->scale + at);
    }
  }

  // use(k, weight) for the eighth at so many eights along K.
  template <class Use>
  [[gnu::always_inline]] void eight(int64_t number, const Use& use) const {
    const char* const words = words_ + number * (words_of_eight(kScheme) * kWordRow);
    const auto word = [words](int i) {
      return Floats::load_words(reinterpret_cast<const uint32_t*>(words + i * kWordRow));
    };
    [&]<int... k>(std::integer_sequence<int, k...>) {
      (use(k, weight_of<kHasZero>(stored<kScheme, k>(word), zero_)), ...);
    }(std::make_integer_sequence<int, kEight>{});
  }

  V scale() const { return scale_; }

  void join(float* total, V sum, bool is_first) const {
    Floats::store(total, joined<kScheme>(sum, scale_, Floats::load(total), is_first));
  }

 private:
  const Params* p_ = nullptr;
  int64_t slot_ = 0;
  const char* words_ = nullptr;
  V zero_, scale_;
};

// body(first, last, group) for each group of int4 among elements [begin, end), or for all of them.
template <Scheme kScheme, class Body>
[[gnu::always_inline]] inline void each_group(const Params& p, int64_t begin, int64_t end, const Body& body) {
  if constexpr (kScheme == Scheme::int4) {
    for (int64_t k = begin; k < end; k += p.group) body(k, std::min(k + p.group, end), k / p.group);
  } else {
    body(begin, end, 0);
  }
}

}  // namespace
}  // namespace fastdiff::weight_linear
