// SPDX-License-Identifier: Apache-2.0
// gather_tokens: tokens by their numbers, something else where there is none, and a residual.
//
//   y[b, m] = (index[b, m] >= 0 ? x[b, index[b, m]] : fill[b, m]) + residual[b, m]
//
// Floor: the tokens that are named and the residual are read once, y is written once; no arithmetic to speak
// of.
#pragma once

#include <cstdint>
#include <optional>

#include "attention/token_lists.h"
#include "core/isa.h"

namespace fastdiff::gather_tokens {

struct Arguments {
  TensorView x;                        // [B, N, C]
  TensorView index;                    // [B|1, M]; -1: none
  std::optional<TensorView> fill;      // [C] or [B|1, M|1, C]
  std::optional<TensorView> residual;  // [B, M, C]
};

struct Params {
  int64_t samples = 0, tokens = 0, places = 0, channels = 0;  // B, N, M, C
  attention::Sequences x, fill, residual, y;
  attention::Numbers index;
  bool wide = false;    // arithmetic in float64
  bool stream = false;  // more bytes than the last-level cache holds: write new lines past the caches

  constexpr int64_t rows() const { return samples * places; }
  constexpr int64_t numel() const { return rows() * channels; }
};

inline constexpr int64_t kSerialNumel = 32768;  // fewer elements are left to one thread

// Checks all but the result; on the CPU also that every token is there. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const Params& params, int64_t begin, int64_t end);  // rows of y, counted over all samples
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::gather_tokens
