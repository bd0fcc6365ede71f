// SPDX-License-Identifier: Apache-2.0
#include "core/layout.h"

#include <algorithm>
#include <array>

namespace fastdiff {
namespace {

struct Dim {
  int64_t size, stride;
};

// The dimensions of more than one element, by falling stride; returns how many.
int sorted_dims(const TensorView& view, std::array<Dim, kMaxRank>& dims) {
  int count = 0;
  for (int d = 0; d < view.rank; ++d)
    if (view.sizes[d] != 1) dims[count++] = {view.sizes[d], view.strides[d]};
  std::sort(dims.begin(), dims.begin() + count, [](Dim a, Dim b) { return a.stride > b.stride; });
  return count;
}

struct Bytes {
  const char *begin, *end;
};

Bytes extent(const TensorView& view) {
  int64_t first = 0, last = 0;
  for (int d = 0; d < view.rank; ++d)
    (view.strides[d] < 0 ? first : last) += (view.sizes[d] - 1) * view.strides[d];
  const char* base = static_cast<const char*>(view.data);
  return {base + first * size_of(view.dtype), base + (last + 1) * size_of(view.dtype)};
}

// Whether sum_d k_d stride_d == distance for some |k_d| < size_d: two equal layouts that far apart collide.
bool collide(const Dim* dims, int count, int64_t distance) {
  if (count == 0) return distance == 0;
  const auto [size, stride] = dims[0];
  if (stride == 0) return collide(dims + 1, count - 1, distance);
  const int64_t nearest = distance / stride;
  for (int64_t k : {nearest - 1, nearest, nearest + 1})
    if (-size < k && k < size && collide(dims + 1, count - 1, distance - k * stride)) return true;
  return false;
}

bool same_layout(const TensorView& a, const TensorView& b) {
  if (a.rank != b.rank || size_of(a.dtype) != size_of(b.dtype)) return false;
  for (int d = 0; d < a.rank; ++d)
    if (a.sizes[d] != b.sizes[d] || (a.sizes[d] != 1 && a.strides[d] != b.strides[d])) return false;
  return true;
}

}  // namespace

bool elements_are_distinct(const TensorView& view) {
  std::array<Dim, kMaxRank> dims;
  const int count = sorted_dims(view, dims);
  int64_t covered = 1;  // elements that the dimensions so far reach over
  for (int d = count - 1; d >= 0; --d) {
    if (dims[d].size == 0) return true;
    if (dims[d].stride < covered) return false;
    covered = dims[d].stride * (dims[d].size - 1) + covered;
  }
  return true;
}

bool is_dense(const TensorView& view) {
  std::array<Dim, kMaxRank> dims;
  const int count = sorted_dims(view, dims);
  int64_t expected = 1;
  for (int d = count - 1; d >= 0; --d) {
    if (dims[d].size == 0) continue;  // as PyTorch has it
    if (dims[d].stride != expected) return false;
    expected *= dims[d].size;
  }
  return true;
}

bool is_contiguous(const TensorView& view) {
  if (view.numel() == 0) return true;
  int64_t expected = 1;
  for (int d = view.rank - 1; d >= 0; --d) {
    if (view.sizes[d] == 1) continue;
    if (view.strides[d] != expected) return false;
    expected *= view.sizes[d];
  }
  return true;
}

Overlap overlap(const TensorView& a, const TensorView& b) {
  if (a.numel() == 0 || b.numel() == 0 || a.device != b.device) return Overlap::none;
  const Bytes x = extent(a), y = extent(b);
  if (x.end <= y.begin || y.end <= x.begin) return Overlap::none;
  if (!same_layout(a, b)) return Overlap::partial;
  if (a.data == b.data) return a.dtype == b.dtype ? Overlap::same : Overlap::partial;
  const int64_t distance = static_cast<const char*>(a.data) - static_cast<const char*>(b.data);
  if (distance % size_of(a.dtype)) return Overlap::partial;
  std::array<Dim, kMaxRank> dims;
  const int count = sorted_dims(a, dims);
  return collide(dims.data(), count, distance / size_of(a.dtype)) ? Overlap::partial : Overlap::none;
}

}  // namespace fastdiff
