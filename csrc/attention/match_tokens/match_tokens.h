// SPDX-License-Identifier: Apache-2.0
// match_tokens: for each token of a the token of b with the highest cosine similarity.
//
//   score[b, i] = max_j s_ij, index[b, i] = the first j that has it, s_ij = (a_i / |a_i|) . (b_j / |b_j|)
//
// Floor: 2 C operations for each pair of tokens, as a matrix product has; a and b are read once. The N_a x
// N_b scores, which that product would write and torch.max read, are never stored.
#pragma once

#include <cstdint>

#include "attention/token_lists.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::match_tokens {

struct Arguments {
  TensorView a;  // [B, N_a, C]
  TensorView b;  // [B, N_b, C]
};

struct Params {
  int64_t samples = 0, rows = 0, columns = 0, channels = 0;  // B, N_a, N_b, C
  attention::Sequences a, b;
  attention::Sequences score;  // float32, or float64 if a is
  int64_t* index = nullptr;
  int64_t index_sample = 0, index_row = 0;  // strides of index
  bool wide = false;                        // arithmetic in float64

  // C in whole units of 16: what is beyond it is zeros.
  constexpr int64_t padded() const { return (channels + 15) / 16 * 16; }
  constexpr int64_t numel() const { return samples * rows; }
};

// Indices of columns are floats at times.
inline constexpr int64_t kMaxColumns = int64_t{1} << 24;

// Checks all but the results. Throws Refusal.
void check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& score, const TensorView& index);

// Memory for normalised tokens and, on the CPU, what each thread needs; aligned to 8 bytes, its contents do
// not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);
int64_t cuda_scratch_bytes(const Params& params);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::match_tokens
