// SPDX-License-Identifier: Apache-2.0
// sparse_fill: what is small in a dense tensor is replaced by the next of a list of values.
//
//   y[i] = |w[i]| < threshold ? values[rank(i)] : w[i],  rank(i) = how many before i are replaced, row-major
//
// Floor: w is read twice, to count and to fill, the values are read and y is written once.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/team.h"
#include "core/view.h"
#include "core/walk.h"

namespace fastdiff::sparse_fill {

struct Arguments {
  TensorView w;
  TensorView threshold;  // []
  TensorView values;     // [M]
};

struct Params {
  int64_t numel = 0;
  int dims = 0;
  int64_t size[kMaxDims] = {};  // innermost first
  Operand w, y;
  const void* threshold = nullptr;
  DType threshold_dtype = DType::f32;
  const void* values = nullptr;
  DType values_dtype = DType::f32;
  int64_t count = 0, values_stride = 0;  // M
  bool wide = false;                     // w is float64
};

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

// Throws Refusal unless as many are replaced as there are values.
void check_count(const Params& params, int64_t replaced);

// Numbers of the scratch memory: each chunk's first rank, and at last how many are replaced.
int64_t scratch_numel(const Params& params);

enum class Step { count, fill };

template <Isa>
struct Cpu {
  static void run(const Params& params, Step step, int64_t* ranks, const Team& team);
};

void launch_cuda(const Params& params, int64_t* ranks, int device, void* stream);

}  // namespace fastdiff::sparse_fill
