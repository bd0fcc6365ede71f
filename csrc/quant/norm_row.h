// SPDX-License-Identifier: Apache-2.0
// Rows of activations, as the linear layers of transformers see them: normed and modulated on the way.
//
//   y = (norm(x) * weight + bias) * (1 + scale_by) + shift        in float32, every part optional
//   norm: (x - mean) / sqrt(var + eps), or x / sqrt(mean(x^2) + eps), over the last dimension
//
// The variance is of differences. Sums over a row have one order everywhere: element e goes to lane e %
// kSumLanes, a lane adds its elements in their order, then lanes l and l + kSumLanes/2 are added, l +
// kSumLanes/4, ...
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "core/view.h"
#include "core/walk.h"

namespace fastdiff::quant {

inline constexpr int kSumLanes = 128;  // a warp that takes four elements a turn; registers of any width

struct NormArguments {
  std::optional<double> eps;  // none: no norm
  bool rms = false;
  std::optional<TensorView> weight, bias;     // [K]
  std::optional<TensorView> scale_by, shift;  // [K], [B|1, K] or what broadcasts to x
};

// One of the tensors that are walked row by row; no data: none.
struct RowTensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t column = 0;             // stride along a row, in elements
  int64_t stride[kMaxDims] = {};  // of the merged leading dimensions, innermost first
};

enum class Norm : int8_t { none, layer, rms };

struct NormedRows {
  int64_t rows = 0, columns = 0;
  int dims = 1;
  int64_t size[kMaxDims] = {};
  Norm norm = Norm::none;
  float eps = 0;
  RowTensor x, weight, bias, scale_by, shift;

  // y is x.
  constexpr bool is_plain() const {
    return norm == Norm::none && weight.data == nullptr && bias.data == nullptr && scale_by.data == nullptr &&
           shift.data == nullptr;
  }
  // Where a row begins.
  FASTDIFF_HD int64_t at(const RowTensor& t, int64_t row) const {
    int64_t sum = 0;
    for (int d = 0; d < dims - 1; ++d) {
      sum += row % size[d] * t.stride[d];
      row /= size[d];
    }
    return sum + row * t.stride[dims - 1];
  }
};

// ---- the desk's part: norm_row_desk.cpp -------------------------------------------------------------

// x [..., K] and all that happens to its rows. Throws Refusal.
void check_rows(const char* op, const TensorView& x, const NormArguments& norm);

// A result shares no memory with any of them. Throws Refusal.
void check_apart_from_rows(const char* op, const char* argument, const TensorView& result,
                           const TensorView& x, const NormArguments& norm);

// A result [..., K] or [..., 1], and where its rows' layout goes.
struct RowResult {
  RowTensor* tensor;
  const TensorView* view;
};

// Lays out the rows, in the order that x has in memory. Throws Refusal.
NormedRows rows_of(const char* op, const TensorView& x, const NormArguments& norm,
                   std::initializer_list<RowResult> results);

}  // namespace fastdiff::quant
