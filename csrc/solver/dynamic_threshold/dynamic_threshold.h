// SPDX-License-Identifier: Apache-2.0
// dynamic_threshold: each sample clamped to a quantile of its own magnitudes and divided by it.
//
//   s_b = clamp(quantile(|x_b|, ratio), min_value, max_value)      y_b = clamp(x_b, -s_b, s_b) / s_b
//
// The quantile is found without sorting: a magnitude's bit pattern orders as its value does, and so the order
// statistic is found digit by digit, each by counting how many keys have which digit (radix select).
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/space.h"
#include "core/team.h"

namespace fastdiff::dynamic_threshold {

struct Arguments {
  TensorView x;  // [B, *sample]
  double ratio = 0, max_value = 0, min_value = 0;
};

struct Params {
  int64_t samples = 1;  // B
  int64_t numel = 0;    // of one sample
  double ratio = 0, max_value = 0, min_value = 0;
  bool compute_double = false;
  bool stream = false;  // more bytes than the last-level cache holds: write new lines past the caches

  Walk search;  // over x, in the order in which it lies in memory: any order has the same quantile

  int dims = 0;                 // of one sample in the order of the result
  int64_t size[kMaxDims] = {};  // innermost first; their product is numel
  Operand x, y;
};

// Checks all but the result and gives its shape. Throws Refusal.
Shape check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Shape& shape, const TensorView& result);

// Memory that a launch needs besides, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);                   // launch_cuda, on the device
int64_t cpu_scratch_bytes(const Params& params, int threads);  // Cpu::run

// NOTE: kernels own no memory. What frees it when the stack unwinds would be code that the copies for all
// instruction sets share.
template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::dynamic_threshold
