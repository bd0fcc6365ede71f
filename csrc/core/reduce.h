// SPDX-License-Identifier: Apache-2.0
// Sums over each sample's elements that have the same bits everywhere: for any number of threads, layout,
// instruction set, and on CUDA. What is added to what is fixed by the elements' row-major numbers:
//
//   chunk   kChunk elements. Element e goes to lane e % kLanes; a lane adds its elements in their order, in
//   the
//           arithmetic type; then the lanes are added in a tree (l and l + kLanes/2, l + kLanes/4, ...).
//   sample  its chunks' sums, in float64. Chunk c goes to slot c % kSlots; slots add in order, then in a
//   tree.
//
// A lane has 8 elements and the tree 7 levels, so that a chunk's sum is off by at most 15 roundings, and
// chunks add nothing to that: the error does not grow with the sample. Sums are K at a time. The sizes suit a
// warp that takes four elements a turn, and 128 floats in registers of any width.
//
// A room gives the terms of an element and what becomes of a sample's sums:
//   struct Terms  { template <class V> void operator()(const V (&x)[N], V (&sum)[K]) const; };  // any lanes
//   struct Result { void operator()(int64_t sample, const double (&sum)[K]) const; };
#pragma once

#include <cstdint>

#include "core/lanes.h"
#include "core/walk.h"

namespace fastdiff::reduce {

inline constexpr int kLanes = 128;
inline constexpr int kChunk = 8 * kLanes;
inline constexpr int kSlots = 256;
inline constexpr int64_t kStackSums = 512;
inline constexpr int64_t kOneBlockChunks = 64;  // of a sample that one CUDA block takes on alone

// N tensors of [samples, numel elements in row-major order].
template <int N>
struct Source {
  int64_t samples = 0, numel = 0;
  int dims = 0;
  int64_t size[kMaxDims] = {};  // innermost first; their product is numel
  Operand x[N];
};

namespace {

template <int N>
FASTDIFF_HD int64_t chunks_of(const Source<N>& source) {
  return (source.numel + kChunk - 1) / kChunk;
}

// Bytes of device memory for the chunks' sums; 0 where one launch is enough.
template <int N>
int64_t scratch_bytes(const Source<N>& source, int sums) {
  const int64_t chunks = chunks_of(source);
  return chunks <= kOneBlockChunks ? 0
                                   : source.samples * chunks * sums * static_cast<int64_t>(sizeof(double));
}

// Bytes of memory for the same on the CPU; 0 where the stack has room for them.
template <int N>
int64_t cpu_scratch_bytes(const Source<N>& source, int sums) {
  const int64_t all = source.samples * chunks_of(source) * sums;
  return all <= kStackSums ? 0 : all * static_cast<int64_t>(sizeof(double));
}

// The slots that have a chunk, rounded up to a power of two: the tree begins there, all others are 0.
FASTDIFF_HD int used_slots(int64_t chunks) {
  int slots = 1;
  while (slots < kSlots && slots < chunks) slots *= 2;
  return slots;
}

}  // namespace
}  // namespace fastdiff::reduce
