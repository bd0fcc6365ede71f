// SPDX-License-Identifier: Apache-2.0
// Strided elements in and out of blocks, for the CPU loops.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/lanes.h"
#include "core/walk.h"

namespace fastdiff {
namespace {

// Calls piece(offset, first, run) for each innermost run inside the elements [element, element + count) of a
// sample: where the run's first element is in a tensor of these sizes and strides, and its place in the
// block.
template <class Piece>
void for_each_run(int dims, const int64_t* size, const int64_t* stride, int64_t element, int count,
                  const Piece& piece) {
  int64_t at[kMaxDims], offset = 0;
  for (int d = 0; d < dims; ++d) {
    at[d] = d + 1 < dims ? element % size[d] : element;
    element /= size[d];
    offset += at[d] * stride[d];
  }
  for (int done = 0; done < count;) {
    const int run = static_cast<int>(std::min<int64_t>(count - done, size[0] - at[0]));
    piece(offset, done, run);
    done += run;
    at[0] += run;
    offset += run * stride[0];
    for (int d = 0; d + 1 < dims && at[d] == size[d]; ++d) {  // carry into the next dimension
      offset += stride[d + 1] - size[d] * stride[d];
      at[d] = 0;
      ++at[d + 1];
    }
  }
}

// Calls body(S{}) with the storage type S that kernels of arithmetic type T read and write directly.
template <class T, class Body>
void with_storage(DType dtype, const Body& body) {
  if constexpr (sizeof(T) == sizeof(double)) {
    body(double{});
  } else if (dtype == DType::f16) {
    body(half_t{});
  } else if (dtype == DType::bf16) {
    body(bfloat16_t{});
  } else {
    body(float{});
  }
}

// One element of a storage type.
template <class T>
T widened(float x) {
  return static_cast<T>(x);
}
template <class T>
T widened(double x) {
  return static_cast<T>(x);
}
template <class T, class S>
T widened(S x) {
  return static_cast<T>(widen(x));
}
template <class S, class T>
S narrow(T x) {
  if constexpr (std::is_same_v<S, half_t>) {
    return to_half(static_cast<float>(x));
  } else if constexpr (std::is_same_v<S, bfloat16_t>) {
    return to_bfloat16(static_cast<float>(x));
  } else {
    return static_cast<S>(x);
  }
}

// x[e] widened, whole registers first.
template <class T, class S>
void widen_run(const S* x, int64_t count, T* block) {
  using L = Lanes<T>;
  int64_t e = 0;
  for (; e + L::width <= count; e += L::width) L::store(block + e, L::load(x + e));
  for (; e < count; ++e) block[e] = widened<T>(x[e]);
}

// Converts `count` elements of a strided run. The loop over unit strides is one that compilers vectorise.
template <class T>
void load_run(const void* data, DType dtype, int64_t offset, int64_t stride, int64_t count, T* block) {
  if (stride == 0) {
    std::fill_n(block, count, load_as<T>(data, dtype, offset));
  } else if (stride == 1 && dtype == DType::b8) {
    const uint8_t* x = static_cast<const uint8_t*>(data) + offset;
    for (int64_t j = 0; j < count; ++j) block[j] = static_cast<T>(x[j] != 0);
  } else if (stride == 1 && part_of(dtype) == DType::f32) {
    const float* x = static_cast<const float*>(data) + offset;
    for (int64_t j = 0; j < count; ++j) block[j] = static_cast<T>(x[j]);
  } else if (sizeof(T) == sizeof(float) && stride == 1 && (dtype == DType::f16 || dtype == DType::bf16)) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (dtype == DType::f16) {
        widen_run(static_cast<const half_t*>(data) + offset, count, block);
      } else {
        widen_run(static_cast<const bfloat16_t*>(data) + offset, count, block);
      }
    }
  } else {
    for (int64_t j = 0; j < count; ++j) block[j] = load_as<T>(data, dtype, offset + j * stride);
  }
}

}  // namespace
}  // namespace fastdiff
