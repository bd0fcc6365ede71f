// SPDX-License-Identifier: Apache-2.0
// The front desks' view of the dimensions that are not transformed.
#pragma once

#include <algorithm>
#include <array>

#include "wavelet/filter_bank.h"

namespace fastdiff::wavelet {

// The dimensions before those that are transformed, at the desk.
template <int kOperands>
class Leading {
 public:
  Leading(const int64_t* sizes, int rank) : rank_(rank) {
    for (int d = 0; d < rank; ++d) size_[d] = sizes[d];
  }

  // A tensor whose first dimensions these are.
  void add(int operand, const TensorView& view) {
    for (int d = 0; d < rank_; ++d) stride_[operand][d] = view.strides[d];
  }

  // Numbers for each band: their last dimension is that of the bands, those before it are aligned at the end.
  Numbers add_numbers(int operand, const TensorView& numbers) {
    for (int d = 0; d + 1 < numbers.rank; ++d)
      if (numbers.sizes[d] != 1) stride_[operand][rank_ - (numbers.rank - 1) + d] = numbers.strides[d];
    const bool varies = numbers.rank > 0 && numbers.size(-1) != 1;
    return {numbers.data, numbers.dtype, varies ? numbers.stride(-1) : 0};
  }

  // How many elements lie side by side at one position of the last axis: the channels, if that is where two
  // tensors have them. Those dimensions are then no longer among the planes. 1: there are none.
  int64_t innermost(int64_t step, int64_t other_step, int operand, int other) {
    if (step != other_step || step <= 1) return 1;
    std::array<int, kMaxRank> inside{};
    int count = 0;
    for (int d = 0; d < rank_; ++d)
      if (size_[d] > 1 && 0 < stride_[operand][d] && stride_[operand][d] < step) inside[count++] = d;
    std::sort(inside.begin(), inside.begin() + count,
              [&](int a, int b) { return stride_[operand][a] < stride_[operand][b]; });
    int64_t covered = 1;
    for (int n = 0; n < count; ++n) {
      const int d = inside[n];
      for (int o = 0; o < kOperands; ++o)
        if (stride_[o][d] != (o == operand || o == other ? covered : 0)) return 1;
      covered *= size_[d];
    }
    if (covered != step) return 1;
    for (int n = 0; n < count; ++n) size_[inside[n]] = 1;
    return covered;
  }

  Planes<kOperands> planes() const {
    Planes<kOperands> planes;
    for (int d = 0; d < rank_; ++d) {
      planes.count *= size_[d];
      if (size_[d] == 1) continue;
      planes.size[planes.dims] = size_[d];
      for (int o = 0; o < kOperands; ++o) planes.stride[o][planes.dims] = stride_[o][d];
      ++planes.dims;
    }
    return planes;
  }

 private:
  int rank_;
  int64_t size_[kMaxRank] = {};
  int64_t stride_[kOperands][kMaxRank] = {};
};

// Strides of a row-major tensor: a stand-in for a result that there is not yet.
inline std::array<int64_t, kMaxRank> row_major(const int64_t* sizes, int rank) {
  std::array<int64_t, kMaxRank> strides{};
  int64_t step = 1;
  for (int d = rank - 1; d >= 0; --d) {
    strides[static_cast<size_t>(d)] = step;
    step *= sizes[d];
  }
  return strides;
}

}  // namespace fastdiff::wavelet
