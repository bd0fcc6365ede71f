// SPDX-License-Identifier: Apache-2.0
// linear_step: a triangular program of linear combinations, the one primitive under every solver.
//
//   y_i = clamp( sum_k C[s,b,i,k] x_k + sum_{j<i} C[s,b,i,K+j] y_j + C[s,b,i,K+M] z,  lo_i, hi_i )
//
// This header is the whole contract between the front desk (linear_step_desk.cpp), which checks tensors
// and merges their layouts, and the kernels, which only see Params.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/space.h"

namespace fastdiff::linear_step {

inline constexpr int kMaxInputs = 40;
inline constexpr int kMaxRows = 8;
inline constexpr int kMaxColumns = kMaxInputs + kMaxRows + 3;

// What a caller hands to the front desk. Absent tensors have data == nullptr and rank 0: see present().
struct Arguments {
  std::span<const TensorView> inputs;      // K x [B|1, *sample]
  TensorView table;                        // [S?, B?, M, K+M+3], S if step is given, B for per-sample tables
  const TensorView* step = nullptr;        // [] or [1], int64
  const TensorView* rng = nullptr;         // [2] or [B, 2], int64: seed, offset
  const TensorView* gate_table = nullptr;  // [S?, B?, M, K+M+1]
  const TensorView* mask = nullptr;        // broadcastable to [B, *sample]
  const TensorView* maps = nullptr;        // [S?, P, *sample]
  std::span<const int64_t> channels;       // empty, or {c0, c1}
  std::span<const int64_t> map_index;      // empty, or [M * K], -1: no map
  std::span<const int> store;              // [M]: -1, or the DType in which row i is stored
};

struct Side {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Walk walk;
};

// Where the coefficients are; strides in elements.
struct Table {
  const void* data = nullptr;
  int64_t step_stride = 0, sample_stride = 0, row_stride = 0, column_stride = 0;
  bool is_double = false;
};

// What every kernel needs, whatever it does with the operands.
struct Settings {
  int inputs = 0, rows = 0;  // K, M
  int64_t numel = 0;         // elements of one sample's space
  int64_t samples = 1;       // B if anything differs between samples, else 1 (folded into the space)
  bool compute_double = false;
  bool complex = false;  // noise of total variance 1: 1/2 in each part
  bool stream = false;   // more bytes than the last-level cache holds: write new lines past the caches

  Table table;                    // K+M+3 columns
  Table gate_table;               // K+M+1 columns; data == nullptr: no gate
  const int64_t* step = nullptr;  // null: step 0
  int64_t steps = 1;              // S

  const int64_t* rng = nullptr;  // {seed, offset} per sample; null: no noise
  int64_t rng_sample_stride = 0;
  Walk index;  // of an element's noise
};

struct Params : Settings {
  int dims = 0;                 // of one sample's merged space
  int64_t size[kMaxDims] = {};  // innermost first; their product is numel

  Operand input[kMaxInputs];  // x_k
  Operand output[kMaxRows];   // data == nullptr: row i is not stored

  Side mask;     // gate weight; data == nullptr: 1
  Walk channel;  // the channel number of an element; dims == 0: the gate has no range
  int64_t channel_begin = 0, channel_end = 0;

  Side map;  // per-element coefficient factors; data == nullptr: none
  int64_t map_step_stride = 0, map_stride = 0;
  int8_t map_index[kMaxRows * kMaxInputs] = {};  // [M, K]
};

// Checks everything but the outputs and gives the outputs' shape. Throws Refusal.
Shape check(const Arguments& arguments);

// Checks the outputs (one per stored row, in row order) and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Shape& shape, std::span<const TensorView> outputs);

// Elements [begin, end) of the samples * numel elements, on this thread.
template <Isa>
struct Cpu {
  static void run(const Params& params, int64_t begin, int64_t end);
};

// A range of fewer elements is not worth a second thread; ranges are cut at multiples of kTile.
inline constexpr int64_t kSerialNumel = 64 * 1024;
inline constexpr int64_t kTile = 4096;

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::linear_step
