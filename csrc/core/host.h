// SPDX-License-Identifier: Apache-2.0
// The floor of every *_op.cpp, and the only header that includes torch: tensors as views, allocation,
// the device guard with its stream, and the parallel loop. Stable ABI only.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "core/layout.h"
#include "core/team.h"
#include "core/view.h"

namespace fastdiff {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// c10::ScalarType codes are part of the stable ABI; this maps the ones that kernels know.
std::optional<DType> dtype_from_code(int64_t code);
int32_t code_from_dtype(DType dtype);

// A borrowed view; `tensor` must outlive it. Refuses dtypes, devices and layouts that no kernel has.
TensorView view_of(const char* op, const Argument& argument, const Tensor& tensor);
std::optional<TensorView> optional_view(const char* op, const char* argument, const OptionalTensor& tensor);

std::vector<TensorView> views_of(const char* op, const char* argument, const std::vector<Tensor>& tensors);

// As torch.empty_like(like, dtype=dtype) makes it: dense layouts are kept. If `sizes` differs from like's
// shape (broadcast batch), contiguous.
Tensor empty_output(const TensorView& like, int rank, const int64_t* sizes, DType dtype);

// Row-major, of these sizes.
Tensor empty_contiguous(const TensorView& sizes);

// Makes a tensor's device current, for as long as it lives, and names the stream to launch on. Every
// launch needs one; there is no other way to get a stream.
class On {
 public:
  explicit On(Device device);
  void* stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// [size], contiguous.
Tensor empty_vector(Device device, int64_t size, DType dtype);

// torch's threads.
Team torch_team();

// Memory for intermediate results from torch's allocator, in stream order on CUDA; none for 0 bytes.
class Scratch {
 public:
  Scratch(Device device, int64_t bytes) {
    if (bytes > 0) memory_ = empty_vector(device, bytes, DType::u8);
  }
  void* data() const { return memory_ ? memory_->mutable_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> memory_;
};

// range(begin, end) over [0, total), cut at multiples of `tile`; on this thread if total < serial.
// `range` must not throw: it may run on a worker thread.
template <class Range>
void parallel_ranges(int64_t total, int64_t tile, int64_t serial, const Range& range) {
  if (total < serial) return range(int64_t{0}, total);
  const int64_t tiles = (total + tile - 1) / tile;
  const int64_t grain = std::max<int64_t>(1, serial / 2 / tile);
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) {
    range(first * tile, std::min(total, last * tile));
  });
}

}  // namespace fastdiff
