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
    are_direct_ = source.dims == 1;
    for (const Operand& x : source.x)
      are_direct_ = are_direct_ && x.stride[0] == 1 && x.dtype == source.x[0].dtype &&
                    (x.dtype == DType::f64) == (sizeof(T) == sizeof(double));
  }

  // The chunk's K sums to total[0], total[stride], ...
  void sum(int64_t sample, int64_t chunk, double* total, int64_t stride) {
    const int64_t first = chunk * kChunk;
    const int count = static_cast<int>(std::min<int64_t>(kChunk, source_.numel - first));
    if (count == kChunk && are_direct_) {
      with_storage<T>(source_.x[0].dtype, [&]<class S>(S) {
        const S* x[N];
        for (int n = 0; n < N; ++n)
          x[n] = static_cast<const S*>(source_.x[n].data) + sample * source_.x[n].sample_stride + first;
        add_all(x);
      });
    } else {
      const T* x[N];
      for (int n = 0; n < N; ++n) x[n] = block(n, sample, first, count);
      count == kChunk ? add_all(x) : add_some(x, count);
    }
    for (int k = 0; k < K; ++k) total[k * stride] = static_cast<double>(tree(lanes_[k]));
  }

 private:
  const T* block(int n, int64_t sample, int64_t first, int count) {
    const Operand& x = source_.x[n];
    const int64_t base = sample * x.sample_stride;
    for_each_run(source_.dims, source_.size, x.stride, first, count, [&](int64_t offset, int at, int run) {
      load_run(x.data, x.dtype, base + offset, x.stride[0], run, blocks_[n] + at);
    });
    return blocks_[n];
  }

  // As many lanes at a time as registers are left for their sums, kSpan apart: those that the tree adds
  // first.
  template <class S>
  void add_all(const S* const (&x)[N]) {
    constexpr int kFree = L::width == 16 ? 20 : 12;  // registers; AVX-512 has 32 and not 16
    constexpr int kRegisters = K <= kFree / 4 ? 4 : K <= kFree / 2 ? 2 : 1;
    constexpr int kSpan = kLanes / kRegisters;
    static_assert(kSpan % L::width == 0);
    for (int lane = 0; lane < kSpan; lane += L::width) {
      V sum[kRegisters][K];
      for (auto& own : sum)
        for (V& s : own) s = splat<V>(T(0));
      for (int e = lane; e < kChunk; e += kLanes) {
#pragma GCC unroll 8
        for (int r = 0; r < kRegisters; ++r) {
          V at[N];
          for (int n = 0; n < N; ++n) at[n] = L::load(x[n] + e + r * kSpan);
          terms_(at, sum[r]);
        }
      }
      for (int half = kRegisters / 2; half > 0; half /= 2)
        for (int r = 0; r < half; ++r)
          for (int k = 0; k < K; ++k) sum[r][k] = add(sum[r][k], sum[r + half][k]);
      for (int k = 0; k < K; ++k) L::store(lanes_[k] + lane, sum[0][k]);
    }
    left_ = kSpan;
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
    left_ = kLanes;
  }

  T tree(T* lane) const {
    for (int half = left_ / 2; half >= L::width; half /= 2)
#pragma GCC unroll 4
      for (int l = 0; l < half; l += L::width)
        L::store(lane + l, add(L::load(lane + l), L::load(lane + l + half)));
    return L::total(L::load(lane));
  }

  const Source<N>& source_;
  const Terms terms_;
  bool are_direct_;    // in one storage type, to be read where they lie
  int left_ = kLanes;  // lanes that are still to be added
  alignas(64) T lanes_[K][kLanes];
  alignas(64) T blocks_[N][kChunk];
};

// A sample's sum of its chunks' sums.
double add_chunks(const double* partial, int64_t chunks) {
  double slot[kSlots] = {};
  for (int64_t first = 0; first < chunks; first += kSlots)
    for (int64_t s = 0; s < std::min<int64_t>(kSlots, chunks - first); ++s) slot[s] += partial[first + s];
  for (int half = used_slots(chunks) / 2; half > 0; half /= 2)
    for (int s = 0; s < half; ++s) slot[s] += slot[s + half];
  return slot[0];
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
      sums.sum(n / chunks, n % chunks, partial + n, total);
  });
  for (int64_t sample = 0; sample < source.samples; ++sample) {
    double sum[K];
    for (int k = 0; k < K; ++k) sum[k] = add_chunks(partial + k * total + sample * chunks, chunks);
    result(sample, sum);
  }
}

}  // namespace
}  // namespace fastdiff::reduce
