// SPDX-License-Identifier: Apache-2.0
// int8_linear: products of int8 with exact sums, from activations that are quantised on the way in.
//
//   sum[m, n] = sum_k (q[m, k] - zx[m]) (w[n, k] - zw[n])
//             = sum_k q w - zx sum_k w - zw sum_k q + K zx zw
//   y         = epilogue(sx[m] sum[m, n]), quant/epilogue.h, whose scale is sw[n]
//
// The sums are int32 and exact for K <= 33024: |sum| <= K 255^2 < 2^31.
//
// Floor, per thread of a CPU of 3 GHz: 2 M N K / (64 operations a cycle with vpmaddubsw and AVX2, 256 with
// VNNI and AVX-512, 2048 with AMX); below 8 rows or so the weight's N K bytes from memory. Quantisation reads
// x twice from the first-level cache.
#pragma once

#include <cstdint>
#include <optional>

#include "core/isa.h"
#include "core/team.h"
#include "quant/epilogue.h"

namespace fastdiff::int8_linear {

inline constexpr int64_t kMaxInner = 33024;  // a multiple of 64 below 2^31 / 255^2

struct Arguments {
  TensorView x;                            // [..., K], int8 or floating
  std::optional<TensorView> x_scale;       // [1] or [M] float32
  std::optional<TensorView> x_zero_point;  // [1] or [M] int32
  TensorView weight;                       // int8 panels, quant/panels.h
  TensorView scale;                        // sw [slots] float32
  TensorView column_sum;                   // sum_k w [slots] int32
  std::optional<TensorView> zero_point;    // zw [slots] int32
  quant::EpilogueArguments epilogue;
  int64_t columns = 0;  // N
  int64_t bits = 8;     // of quantised activations: 8, or 7 without a sign
};

struct Params {
  quant::Epilogue epilogue;
  quant::Rows x;
  quant::Vectors x_scale, x_zero_point;
  const int8_t* weight = nullptr;
  const int32_t* column_sum = nullptr;
  const int32_t* zero_point = nullptr;  // or null
  int64_t pieces = 0;                   // of 64 along K
  bool is_int8 = false;                 // x as it comes
  bool is_signed = true;                // else q is within 0 and 127
  // Scratch memory.
  uint8_t* q = nullptr;         // [M / 16][pieces][16][64], filled up with zeros
  float* row_scale = nullptr;   // sx [M]
  int32_t* row_zero = nullptr;  // zx [M]
  int32_t* row_sum = nullptr;   // sum_k q [M]
  float* rows = nullptr;        // [parts][4][K]: rows as float32

  constexpr int64_t padded_rows() const { return quant::round_up(epilogue.rows, 16); }
};

// Into how many parts the rows are cut to be quantised: each has a buffer of its own.
inline int64_t parts_of_rows(const Params& p, const Team& team) {
  const int64_t most = (p.epilogue.rows * p.epilogue.inner + 32767) / 32768;
  return most < team.threads ? (most < 1 ? 1 : most) : team.threads;
}

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch, but for scratch memory. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& y);

// Cuts scratch memory, aligned to 64, into its parts; from null: only counts. Returns the number of bytes.
int64_t place_cpu(Params& params, const Team& team, void* scratch);
int64_t place_cuda(Params& params, void* scratch);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::int8_linear

namespace fastdiff {
template <>
inline constexpr bool kHasVnni<int8_linear::Cpu> = true;
template <>
inline constexpr bool kHasTiles<int8_linear::Cpu> = true;
}  // namespace fastdiff
