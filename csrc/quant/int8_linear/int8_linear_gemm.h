// SPDX-License-Identifier: Apache-2.0
// int8_linear on the CPU: what all instruction sets have in common. First the vectors and the rows of bytes,
// then blocks of rows by pairs of panels.
#pragma once

#include "quant/int8_linear/int8_linear_math.h"
#include "quant/int8_rows_cpu.h"
#include "quant/int8_sums_cpu.h"

namespace fastdiff::int8_linear {
namespace {

using namespace quant;

constexpr int64_t kBlockBytes = 1 << 20;  // of q in a block of rows: half of a second-level cache
constexpr int64_t kShrunkRows = 4;        // whose narrow products are formed together

// Rows of x as bytes, and their products with V.
template <class Tiles, bool kSigned>
class RowWriter {
  static constexpr int kOffset = Tiles::template kOffset<kSigned>;

 public:
  RowWriter(const Params& p, float* buffer) : p_(p), buffer_(buffer) {}

  // Rows [begin, end), begin a multiple of kShrunkRows.
  void operator()(int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m += kShrunkRows) {
      const int count = static_cast<int>(std::min(kShrunkRows, end - m));
      const float* x[kShrunkRows];
      for (int r = 0; r < count; ++r) {
        x[r] =
            p_.is_int8 && p_.epilogue.rank == 0 ? nullptr : floats_of(m + r, buffer_ + r * p_.epilogue.inner);
        p_.is_int8 ? copy(m + r) : quantise(m + r, x[r]);
      }
      if (p_.epilogue.rank == 0) continue;
      if (count == kShrunkRows) {
        shrink_rows<kShrunkRows>(p_.epilogue, x, m);
      } else {
        for (int r = 0; r < count; ++r) shrink_rows<1>(p_.epilogue, {x[r]}, m + r);
      }
    }
  }

 private:
  static constexpr int64_t kStep = kGroupRows * kPiece;

  uint8_t* bytes_of(int64_t m) const {
    return p_.q + (m / kGroupRows * p_.pieces * kGroupRows + m % kGroupRows) * kPiece;
  }

  // Where they lie, if they are float32 side by side; else a copy.
  const float* floats_of(int64_t m, float* copy) const {
    const int64_t at = p_.x.at(m);
    if (p_.x.dtype == DType::f32 && p_.x.element == 1) return static_cast<const float*>(p_.x.data) + at;
    load_run(p_.x.data, p_.x.dtype, at, p_.x.element, p_.epilogue.inner, copy);
    if (p_.is_int8) dequantise(m, copy);
    return copy;
  }

  void dequantise(int64_t m, float* x) const {
    const RowScale s = given_scale(p_, m);
    for (int64_t k = 0; k < p_.epilogue.inner; ++k)
      x[k] = (x[k] - static_cast<float>(s.zero_point)) * s.scale;
  }

  void set(int64_t m, const RowScale& s, int32_t sum) const {
    p_.row_scale[m] = s.scale;
    p_.row_zero[m] = s.zero_point;
    p_.row_sum[m] = sum;
  }

  void quantise(int64_t m, const float* x) const {
    RowScale s =
        p_.x_scale.data != nullptr ? given_scale(p_, m) : dynamic_scale(x, p_.epilogue.inner, kSigned);
    const int32_t sum = write_bytes(x, p_.epilogue.inner, s, kOffset, bytes_of(m), kStep);
    set(m, s, sum);
  }

  void copy(int64_t m) const {
    const int8_t* const x = static_cast<const int8_t*>(p_.x.data) + p_.x.at(m);
    uint8_t* const bytes = bytes_of(m);
    int32_t sum = 0;
    for (int64_t piece = 0; piece < p_.pieces; ++piece) {
      const int64_t first = piece * kPiece;
      const int64_t count = std::min<int64_t>(kPiece, p_.epilogue.inner - first);
      for (int64_t k = 0; k < count; ++k) {
        const int8_t q = x[(first + k) * p_.x.element];
        sum += q;
        bytes[piece * kStep + k] = static_cast<uint8_t>(q + kOffset);
      }
      std::fill(bytes + piece * kStep + count, bytes + piece * kStep + kPiece, uint8_t{0});
    }
    set(m, given_scale(p_, m), sum);
  }

  const Params& p_;
  float* const buffer_;
};

template <class Tiles, bool kSigned>
void run_as(const Params& p, const Team& team) {
  const Epilogue& e = p.epilogue;
  const int64_t vector_parts = e.rank > 0 ? team.threads : 1;
  each_part(team, vector_parts, [&](int64_t part) { widen_vectors(e, part, vector_parts); });

  const int64_t row_parts = parts_of_rows(p, team);
  each_part(team, row_parts, [&](int64_t part) {
    const int64_t quads = round_up(e.rows, kShrunkRows) / kShrunkRows;
    RowWriter<Tiles, kSigned> writer(p, p.rows + part * kShrunkRows * e.inner);
    writer(quads * part / row_parts * kShrunkRows,
           std::min(e.rows, quads * (part + 1) / row_parts * kShrunkRows));
  });

  // Blocks of rows that stay in a thread's cache, by runs of panels: some for each thread.
  const int64_t most =
      std::clamp(round_up(kBlockBytes / (p.pieces * kPiece + 1), 32), int64_t{32}, int64_t{512});
  const int64_t block = even_block(e.rows, most, 32);
  const int64_t blocks = (e.rows + block - 1) / block;
  const int64_t pairs = round_up(e.slots / kPanel, kPair) / kPair;
  const int64_t runs = std::clamp((4 * team.threads + blocks - 1) / blocks, int64_t{1}, pairs);
  const Int8Factors factors{p.weight,    p.column_sum, p.zero_point, p.pieces,
                            p.row_scale, p.row_zero,   p.row_sum};
  each_part(team, blocks * runs, [&](int64_t part) {
    const int64_t first = part / runs * block, run = part % runs;
    Tiles::begin();
    Int8Sums<Tiles, kSigned> sums(e, factors);
    sums(StoredGroups{p.q + first * p.pieces * kPiece, p.pieces}, first, std::min(block, e.rows - first),
         pairs * run / runs * kPair, std::min(e.slots / kPanel, pairs * (run + 1) / runs * kPair));
    Tiles::end();
  });
}

template <class Tiles>
void run_with(const Params& p, const Team& team) {
  if (p.is_signed) {
    run_as<Tiles, true>(p, team);
  } else {
    run_as<Tiles, false>(p, team);
  }
}

}  // namespace
}  // namespace fastdiff::int8_linear
