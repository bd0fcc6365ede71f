// SPDX-License-Identifier: Apache-2.0
// lowrank_apply: a product with a matrix of low rank, gated for each sample, beside what it is added to.
//
//   p[b, m] = gates[b] * (x[b, m] down^T + offset[b])
//   y[b, m] = p[b, m] up^T + b[b] mu + base[b, m] + a[b] x[b, m]
//
// With the tiles of AMX x and both factors stay bfloat16, if all of them are and there are more than 64 rows.
//
// Floor: x (once, or twice with a), base, both matrices and y move once; 2 r (K + N) multiplications a row.
#pragma once

#include <cstdint>
#include <optional>

#include "core/isa.h"
#include "core/team.h"
#include "core/view.h"
#include "core/walk.h"

namespace fastdiff::lowrank_apply {

struct Arguments {
  TensorView x;                              // [B, ..., K]
  TensorView down, up;                       // [r, K], [N, r]
  std::optional<TensorView> gates, offset;   // [B|1, r]
  std::optional<TensorView> a, mu, b, base;  // [] or [B|1], [N], [] or [B|1], [B, ..., N]
};

// The rows of a sample are walked in dimensions that x, base and y share.
struct Rows {
  Operand at;
  int64_t column = 0;  // stride
};

// One factor of a product, seen as [steps of the sum, columns].
struct Factor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t step = 0, column = 0;  // strides
};

// Numbers of each sample, or of all of them.
struct Numbers {
  const void* data = nullptr;  // null: none
  DType dtype = DType::f32;
  int64_t sample = 0, element = 0;  // strides
};

struct Params {
  int64_t samples = 0, rows_of_sample = 0;    // B, M
  int64_t inputs = 0, rank = 0, outputs = 0;  // K, r, N
  int dims = 0;                               // of the rows of a sample
  int64_t size[kMaxDims] = {};                // innermost first
  Rows x, base, y;
  Factor down, up;
  Numbers gates, offset, a, mu, b;
  bool wide = false;  // arithmetic in float64

  constexpr int64_t rows() const { return samples * rows_of_sample; }
  constexpr int64_t numel() const { return rows() * outputs; }
};

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

// Memory for intermediate sums and rearranged factors, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::lowrank_apply

namespace fastdiff {
template <>
inline constexpr bool kHasTiles<lowrank_apply::Cpu> = true;
}  // namespace fastdiff
