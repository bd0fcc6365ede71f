// SPDX-License-Identifier: Apache-2.0
#include "core/space.h"

#include <algorithm>

namespace fastdiff {

Space::Space(const char* op, const Shape& shape, bool complex) : op_(op), rank_(shape.rank) {
  std::copy_n(shape.size, rank_, size_.begin());
  if (rank_ == 0) size_[rank_++] = 1;
  if (complex) size_[rank_++] = 2;
}

Space::Strides Space::strides(const TensorView& view, int skip, int first, bool parts) const {
  Strides stride{};
  for (int d = skip; d < view.rank; ++d)
    stride[first + d - skip] = view.sizes[d] == 1 ? 0 : view.strides[d] * (parts ? 2 : 1);
  if (parts) stride[rank_ - 1] = 1;
  return stride;
}

Space::Strides Space::row_major(bool restart_per_sample) const {
  Strides stride{};
  int64_t next = 1;
  for (int d = rank_ - 1; d >= 0; --d) {
    stride[d] = d == 0 && restart_per_sample ? 0 : next;
    next *= size_[d];
  }
  return stride;
}

Space::Strides Space::channel_number() {
  Strides stride{};
  stride[1] = 1;
  return stride;
}

void Space::order_by(const Strides& first, bool samples_apart) {
  samples_apart_ = samples_apart;
  for (int d = samples_apart ? 1 : 0; d < rank_; ++d)
    if (size_[d] != 1) order_[ordered_++] = d;
  std::stable_sort(order_.begin(), order_.begin() + ordered_,
                   [&](int a, int b) { return first[a] != first[b] ? first[a] < first[b] : a > b; });
}

int64_t Space::numel() const {
  int64_t n = 1;
  for (int i = 0; i < ordered_; ++i) n *= size_[order_[i]];
  return n;
}

int Space::merge(std::span<const Strides> walks, int64_t* size, std::span<int64_t* const> stride) const {
  int dims = 0;
  for (int i = 0; i < ordered_; ++i) {
    const int d = order_[i];
    bool continues = dims > 0;
    for (size_t w = 0; continues && w < walks.size(); ++w)
      continues = walks[w][d] == stride[w][dims - 1] * size[dims - 1];
    if (continues) {
      size[dims - 1] *= size_[d];
      continue;
    }
    if (dims == kMaxDims)
      refuse(op_, "the tensors' layouts differ too much: they do not merge to ", kMaxDims, " dimensions");
    size[dims] = size_[d];
    for (size_t w = 0; w < walks.size(); ++w) stride[w][dims] = walks[w][d];
    ++dims;
  }
  if (dims == 0) size[dims++] = 1;
  return dims;
}

Walk Space::walk(const Strides& strides) const {
  Walk walk;
  int64_t* const stride[] = {walk.stride};
  walk.dims = merge({&strides, 1}, walk.size, stride);
  if (samples_apart_) walk.sample_stride = strides[0];
  return walk;
}

}  // namespace fastdiff
