// SPDX-License-Identifier: Apache-2.0
// core/reduce.h on the CPU, for *_cpu.cpp files.
#pragma once

#include <algorithm>

#include "core/reduce.h"
#include "core/runs.h"
#include "core/team.h"

namespace fastdiff::reduce {
namespace {

inline constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread
inline constexpr int64_t kPartsPerThread = 4;       // evens out what threads get to do

// The sums of one chunk after another of a sample.
template <class T, int N, int K, class Terms>
class Chunks {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  Chunks(const Source<N>& source, const Terms& terms) : source_(source), terms_(terms) {
    for (int n = 0; n < N; ++n)
      is_direct_[n] = source.dims == 1 && source.x[n].stride[0] == 1 &&
                      source.x[n].dtype == (sizeof(T) == sizeof(double) ? DType::f64 : DType::f32);
  }

  void sum(int64_t sample, int64_t chunk, double* total) {
    const int64_t first = chunk * kChunk;
    const int count = static_cast<int>(std::min<int64_t>(kChunk, source_.numel - first));
    const T* x[N];
    for (int n = 0; n < N; ++n) x[n] = block(n, sample, first, count);
    if (count == kChunk) {
      add_all(x);
    } else {
      add_some(x, count);
    }
    for (int k = 0; k < K; ++k) total[k] = static_cast<double>(tree(lanes_[k]));
  }

 private:
  const T* block(int n, int64_t sample, int64_t first, int count) {
    const Operand& x = source_.x[n];
    const int64_t base = sample * x.sample_stride;
    if (is_direct_[n]) return static_cast<const T*>(x.data) + base + first;
    for_each_run(source_.dims, source_.size, x.stride, first, count, [&](int64_t offset, int at, int run) {
      load_run(x.data, x.dtype, base + offset, x.stride[0], run, blocks_[n] + at);
    });
    return blocks_[n];
  }

  // As many lanes at a time as registers are left for their sums, so that memory is read nearly in its order.
  void add_all(const T* const (&x)[N]) {
    constexpr int kRegisters = K < 8 ? 8 / K : 1;
    static_assert(kLanes % (kRegisters * L::width) == 0);
    for (int lane = 0; lane < kLanes; lane += kRegisters * L::width) {
      V sum[kRegisters][K];
      for (auto& own : sum)
        for (V& s : own) s = splat<V>(T(0));
      for (int e = lane; e < kChunk; e += kLanes) {
#pragma GCC unroll 8
        for (int r = 0; r < kRegisters; ++r) {
          V at[N];
          for (int n = 0; n < N; ++n) at[n] = L::load(x[n] + e + r * L::width);
          terms_(at, sum[r]);
        }
      }
      for (int r = 0; r < kRegisters; ++r)
        for (int k = 0; k < K; ++k) L::store(lanes_[k] + lane + r * L::width, sum[r][k]);
    }
  }

  void add_some(const T* const (&x)[N], int count) {
    for (int k = 0; k < K; ++k) std::fill_n(lanes_[k], kLanes, T(0));
    for (int e = 0; e < count; ++e) {
      T at[N], sum[K];
      for (int n = 0; n < N; ++n) at[n] = x[n][e];
      for (int k = 0; k < K; ++k) sum[k] = lanes_[k][e % kLanes];
      terms_(at, sum);
      for (int k = 0; k < K; ++k) lanes_[k][e % kLanes] = sum[k];
    }
  }

  static T tree(T (&lane)[kLanes]) {
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }

  const Source<N>& source_;
  const Terms terms_;
  bool is_direct_[N];
  alignas(64) T lanes_[K][kLanes];
  alignas(64) T blocks_[N][kChunk];
};

// A sample's sums of its chunks' sums, [chunks, K].
template <int K>
void add_chunks(const double* partial, int64_t chunks, double (&total)[K]) {
  double slot[K][kSlots] = {};
  for (int64_t c = 0; c < chunks; ++c)
    for (int k = 0; k < K; ++k) slot[k][c % kSlots] += partial[c * K + k];
  for (int k = 0; k < K; ++k) {
    for (int half = used_slots(chunks) / 2; half > 0; half /= 2)
      for (int s = 0; s < half; ++s) slot[k][s] += slot[k][s + half];
    total[k] = slot[k][0];
  }
}

// result(sample, sums) for each sample. `scratch`: cpu_scratch_bytes, aligned to 8.
template <class T, int K, int N, class Terms, class Result>
void each_sample(const Source<N>& source, const Terms& terms, const Result& result, void* scratch,
                 const Team& team) {
  const int64_t chunks = chunks_of(source), total = source.samples * chunks;
  const Team& used = source.samples * source.numel < kSerialNumel ? kAlone : team;
  double few[kStackSums];
  double* const partial = total * K <= kStackSums ? few : static_cast<double*>(scratch);
  // All samples' chunks in one row: it can be cut anywhere.
  const int64_t parts = std::min<int64_t>(total, used.threads == 1 ? 1 : kPartsPerThread * used.threads);
  each_part(used, parts, [&](int64_t part) {
    Chunks<T, N, K, Terms> sums(source, terms);
    for (int64_t n = total * part / parts; n < total * (part + 1) / parts; ++n)
      sums.sum(n / chunks, n % chunks, partial + n * K);
  });
  for (int64_t sample = 0; sample < source.samples; ++sample) {
    double sum[K];
    add_chunks(partial + sample * chunks * K, chunks, sum);
    result(sample, sum);
  }
}

}  // namespace
}  // namespace fastdiff::reduce
