// SPDX-License-Identifier: Apache-2.0
// The iteration space of an operator, for front desks: dimensions that all tensors walk alike become one.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/view.h"
#include "core/walk.h"

namespace fastdiff {

struct Shape {
  int rank;
  int64_t size[kMaxRank];  // [B, *sample]
};

// The elements of [B, *sample] and how each tensor walks them. Complex tensors get a last dimension of their
// two parts.
class Space {
 public:
  using Strides = std::array<int64_t, kMaxRank + 1>;

  Space(const char* op, const Shape& shape, bool complex = false);

  // Strides of a tensor whose dimensions skip, skip + 1, ... are the space's first, first + 1, ...; a size of
  // 1 is broadcast. `parts`: its elements are complex.
  Strides strides(const TensorView& view, int skip = 0, int first = 0, bool parts = false) const;
  Strides row_major(bool restart_per_sample) const;
  static Strides channel_number();

  // Fixes the order of the elements: as a tensor of these strides has them in memory.
  void order_by(const Strides& first, bool samples_apart);

  int64_t samples() const { return samples_apart_ ? size_[0] : 1; }
  int64_t numel() const;  // of one sample

  // Merges dimensions that every walk continues, and writes what is left: sizes innermost first, and each
  // walk's strides to stride[w]. Returns the number of dimensions, at least 1. Throws Refusal if more than
  // kMaxDims are left.
  int merge(std::span<const Strides> walks, int64_t* size, std::span<int64_t* const> stride) const;

  Walk walk(const Strides& strides) const;

 private:
  const char* op_;
  int rank_;
  std::array<int64_t, kMaxRank + 1> size_{};
  std::array<int, kMaxRank + 1> order_{};  // dimensions of more than one element, innermost first
  int ordered_ = 0;
  bool samples_apart_ = false;
};

// The inputs and outputs of a launch, which share one merged space.
template <int kMost>
class Operands {
 public:
  void add(Operand& operand, const TensorView& view, const Space& space) {
    operand.data = view.data;
    operand.dtype = view.dtype;
    operands_[count_] = &operand;
    merged_[count_] = operand.stride;
    strides_[count_++] = space.strides(view, 0, 0, view.dtype == DType::c64);
  }

  // Writes the operands' strides and the sizes; returns the number of dimensions.
  int merge(const Space& space, int64_t* size) const {
    if (space.samples() != 1)
      for (size_t w = 0; w < count_; ++w) operands_[w]->sample_stride = strides_[w][0];
    return space.merge({strides_.data(), count_}, size, {merged_.data(), count_});
  }

  const Space::Strides& first() const { return strides_[0]; }

 private:
  std::array<Operand*, kMost> operands_;
  std::array<int64_t*, kMost> merged_;
  std::array<Space::Strides, kMost> strides_;
  size_t count_ = 0;
};

}  // namespace fastdiff
