// SPDX-License-Identifier: Apache-2.0
// combine_tokens: weighted sums of tokens over lists of their numbers.
//
//   y[b, m] = sum over e of list m of weights[b, e] x[b, members[b, e]]
//
// List m of a sample has the entries offsets[b, m] ... offsets[b, m + 1] - 1. The sum is formed in that order
// by fused multiply-adds and rounded once.
//
// Floor: each member is read once, y is written once; 2 C operations for each entry.
#pragma once

#include <cstdint>
#include <optional>

#include "attention/token_lists.h"
#include "core/isa.h"

namespace fastdiff::combine_tokens {

struct Arguments {
  TensorView x;                       // [B, N, C]
  TensorView offsets;                 // [B|1, M + 1], ascending
  TensorView members;                 // [B|1, E]
  std::optional<TensorView> weights;  // [B|1, E]; not given: 1
};

struct Params {
  int64_t samples = 0, tokens = 0, lists = 0, channels = 0, entries = 0;  // B, N, M, C, E
  attention::Sequences x, y;
  attention::Numbers offsets, members;
  attention::Sequences weights;  // their `token` is the entry
  bool wide = false;             // arithmetic in float64

  constexpr int64_t rows() const { return samples * lists; }
  constexpr int64_t numel() const { return rows() * channels; }
};

inline constexpr int64_t kSerialNumel = 32768;  // with fewer elements to read one thread does all

// Checks all but the result; on the CPU also that every token of a list is there. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const Params& params, int64_t begin, int64_t end);  // rows of y, counted over all samples
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::combine_tokens
