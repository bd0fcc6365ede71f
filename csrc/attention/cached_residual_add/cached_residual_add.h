// SPDX-License-Identifier: Apache-2.0
// cached_residual_add: the residuals of transformer blocks whose components come from a cache, in one launch.
//
//   y = h + sum_i g_i c_i
//
// with gates g_i that are broadcast over the tokens, or none. The sum is formed in that order and rounded
// once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/isa.h"
#include "core/space.h"

namespace fastdiff::cached_residual_add {

inline constexpr int kMaxComponents = 24;  // 50 operands fit into the 4 KiB of a kernel's arguments

struct Arguments {
  TensorView h;                        // [*shape]
  std::vector<TensorView> components;  // c_i: [*shape]
  std::vector<TensorView> gates;       // what broadcasts to [*shape]
  std::span<const int64_t> gate_of;    // for each component which gate it has; -1: none
};

struct Params {
  int components = 0;
  Operand h, y;
  Operand c[kMaxComponents];
  Operand g[kMaxComponents];  // no data: 1
  int dims = 0;
  int64_t size[kMaxDims] = {};  // innermost first
  int64_t numel = 0;
  bool wide = false;    // arithmetic in float64
  bool stream = false;  // more bytes than the last-level cache holds: write new lines past the caches
};

inline constexpr int64_t kTile = 1024;          // elements of the CPU's block
inline constexpr int64_t kSerialNumel = 32768;  // fewer are left to one thread

// Checks all but the result and gives its shape. Throws Refusal.
Shape check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Shape& shape, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const Params& params, int64_t begin, int64_t end);  // elements
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::cached_residual_add
