// SPDX-License-Identifier: Apache-2.0
// lp_range_search: the range of a quantised tensor, or of each of its rows, that loses least in an Lp norm.
//
//   T_i = max |x| i / candidates,  scale_i = T_i / levels (twice that if x has both signs)
//   i* = argmin_i  sum |x - quantised_i(x)|^p,  the first of several
//
// Floor: x is read twice, once for max |x| and once for all candidates together. There are some 38 operations
// for each element and candidate, which is what takes time: 100 candidates at 16 lanes and two operations a
// cycle are 120 cycles an element, of which memory takes two.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/team.h"
#include "core/view.h"
#include "core/walk.h"

namespace fastdiff::lp_range_search {

inline constexpr int kMostCandidates = 256;
inline constexpr int kLogTerms = 8;

struct Arguments {
  TensorView x;  // any shape, or [rows, ...]
  double p = 0;
  int64_t candidates = 0, bits = 0;
  bool by_rows = false;
};

struct Results {
  TensorView scale, zero_point;  // float32 and int32, [] or [rows]
};

struct Params {
  int64_t rows = 0, numel = 0;  // elements of a row, row-major
  int dims = 0;
  int64_t size[kMaxDims] = {};  // innermost first
  Operand x;
  float* scale = nullptr;
  int32_t* zero_point = nullptr;
  int64_t scale_stride = 0, zero_point_stride = 0;
  int candidates = 0, levels = 0;       // 2^bits - 1
  float half_power = 0;                 // p/2
  float log_terms[kLogTerms] = {};      // p/2 log2(1 + f) as a polynomial of f
  double weight[kMostCandidates] = {};  // i^p: sums are in units of a candidate's scale
  bool wide = false;                    // x is float64
};

// Checks all but the results. Throws Refusal.
void check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Results& results);

// Memory for each chunk's range and sums, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::lp_range_search
