// SPDX-License-Identifier: Apache-2.0
// scaled_error_norm: how far two solutions of a step are apart, in units of the tolerance.
//
//   delta = max(atol, rtol max(|lower|, |previous|))      E_b = sqrt(mean_i ((higher_i - lower_i) /
//   delta_i)^2)
//
// An adaptive solver accepts its step where E <= 1. The sum is that of core/reduce.h: the same bits
// everywhere.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/reduce.h"
#include "core/space.h"
#include "core/team.h"

namespace fastdiff::scaled_error_norm {

inline constexpr int kInputs = 3;  // lower, higher, previous
inline constexpr int kSums = 1;

struct Arguments {
  TensorView inputs[kInputs];  // [B, *sample]
  double atol = 0, rtol = 0;
};

struct Params {
  reduce::Source<kInputs> source;
  double atol = 0, rtol = 0;
  bool compute_double = false;

  void* result = nullptr;  // [B], float64 if compute_double
  int64_t result_stride = 0;
};

// The dtype of the result, after all checks but those of the result itself. Throws Refusal.
DType check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, DType dtype, const TensorView& result);

// Memory that a launch needs besides, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);      // launch_cuda, on the device
int64_t cpu_scratch_bytes(const Params& params);  // Cpu::run

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::scaled_error_norm
