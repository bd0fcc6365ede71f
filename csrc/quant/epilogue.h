// SPDX-License-Identifier: Apache-2.0
// What follows the sums of a linear layer before its result is stored, the same for every format of weights:
//
//   h = scale * (s sum) + bias + U p,   p = gates * (V^T x), s of a row
//   y = residual + gate * act(h)    or, gated, residual + gate * (h' act(h''))
//
// with h', h'' the first and the second half of the columns. Arithmetic in float32, rounded once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "quant/activation.h"
#include "quant/panels.h"
#include "quant/rows.h"

namespace fastdiff::quant {

inline constexpr int64_t kMaxRankOfBranch = 1024;
inline constexpr int kRankUnit = 16;  // the rank is filled up to a multiple

struct EpilogueArguments {
  std::optional<TensorView> bias;      // [N]
  std::optional<TensorView> gate;      // [outputs] or [B|1, outputs]
  std::optional<TensorView> residual;  // [..., outputs]
  std::optional<TensorView> down;      // V^T [r, K]
  std::optional<TensorView> up;        // U [N, r]
  std::optional<TensorView> gates;     // [r] or [B|1, r]
  int64_t activation = 0;
  bool gated = false;
};

struct Epilogue {
  int64_t rows = 0, inner = 0, columns = 0, slots = 0;  // M, K, N, N in panels
  int64_t outputs = 0;                                  // of y: N, or N / 2 if gated
  int64_t rows_of_sample = 1, samples = 1;
  int64_t rank = 0, rank_padded = 0;
  Activation activation = Activation::none;
  bool gated = false;
  Vectors bias_in, gate_in, down_in, up_in, gates_in;  // as the caller has them
  Rows residual, y;
  const float* scale = nullptr;      // [slots], or null: 1
  const float* row_scale = nullptr;  // s [rows], or null: 1, or the sums have it
  // As kernels read them, in scratch memory: float32.
  float* bias = nullptr;    // [slots]
  float* gate = nullptr;    // [samples|1][outputs]
  float* down = nullptr;    // [K][rank_padded]
  float* up = nullptr;      // [rank][slots]
  float* shrunk = nullptr;  // p [rows][rank_padded]

  constexpr int64_t samples_of_gate() const { return gate_in.row == 0 ? 1 : samples; }
};

// ---- epilogue_desk.cpp ------------------------------------------------------------------------------

// For x [..., K] and a weight of so many columns. Throws Refusal.
void check_epilogue(const char* op, const EpilogueArguments& a, const TensorView& x, int64_t columns);

// Without y and scratch memory.
Epilogue epilogue_of(const EpilogueArguments& a, const TensorView& x, int64_t columns);

// An input that the result must not share memory with.
struct Input {
  const char* name;
  std::optional<TensorView> t;
};

// Checks the result and gives it to the epilogue; it may be exactly the residual. `others`: inputs besides x
// and those of the epilogue. Throws Refusal.
void set_result(const char* op, const EpilogueArguments& a, const TensorView& x, const TensorView& y,
                std::initializer_list<Input> others, Epilogue& epilogue);

// Hands out scratch memory in pieces aligned to 64, or, from null, only counts it.
class Cut {
 public:
  explicit Cut(void* memory)
      : begin_(reinterpret_cast<char*>(
            round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory)), 64))) {}
  template <class T>
  T* take(int64_t count) {
    T* const taken = begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + bytes_);
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }
  int64_t bytes() const { return bytes_ + 64; }  // for any alignment of the memory

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

void place(Epilogue& epilogue, Cut& scratch);

// One that needs the most scratch memory of all with such sizes.
Epilogue largest_epilogue(int64_t rows, int64_t inner, int64_t columns, int64_t rank, int64_t samples);

}  // namespace fastdiff::quant
