// SPDX-License-Identifier: Apache-2.0
// sparse_fill on the CPU, compiled once per ISA: chunks are counted, their ranks added up, then chunks
// filled.
//
// Ranks depend on each other, so that elements go one by one; their places are listed without a branch, which
// would be missed at every value.
#include <algorithm>
#include <utility>

#include "quant/rows_cpu.h"
#include "quant/sparse_fill/sparse_fill_math.h"

namespace fastdiff::sparse_fill {
namespace {

constexpr int64_t kSerialNumel = 32768;  // fewer elements are left to one thread
constexpr int64_t kPartsPerThread = 4;

template <class T>
class Worker {
 public:
  explicit Worker(const Params& p) : p_(p), threshold_(threshold_of<T>(p)) {}

  int count(int64_t chunk) {
    const int count = load(chunk);
    int replaced = 0;
    for (int e = 0; e < count; ++e) replaced += is_replaced(w_[e], threshold_);
    return replaced;
  }

  void fill(int64_t chunk, int64_t rank, int64_t replaced) {
    const int count = load(chunk);
    load_run(p_.values, p_.values_dtype, rank * p_.values_stride, p_.values_stride, replaced, values_);
    int found = 0;
    for (int e = 0; e < count; ++e) {
      place_[found] = static_cast<uint16_t>(e);  // overwritten, unless it counts
      found += is_replaced(w_[e], threshold_);
    }
    for (int n = 0; n < found; ++n) w_[place_[n]] = values_[n];
    for_each_run(p_.dims, p_.size, p_.y.stride, chunk * kChunk, count, [&](int64_t offset, int at, int run) {
      quant::store_run(p_.y.data, p_.y.dtype, offset, p_.y.stride[0], run, w_ + at);
    });
  }

 private:
  int load(int64_t chunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, p_.numel - chunk * kChunk));
    for_each_run(p_.dims, p_.size, p_.w.stride, chunk * kChunk, count, [&](int64_t offset, int at, int run) {
      load_run(p_.w.data, p_.w.dtype, offset, p_.w.stride[0], run, w_ + at);
    });
    return count;
  }

  const Params& p_;
  const T threshold_;
  alignas(64) T w_[kChunk];
  alignas(64) T values_[kChunk];
  uint16_t place_[kChunk];
};

template <class T>
void run_as(const Params& p, Step step, int64_t* ranks, const Team& team) {
  const int64_t chunks = chunks_of(p);
  const Team& used = p.numel < kSerialNumel ? kAlone : team;
  const int64_t parts = std::min<int64_t>(chunks, used.threads == 1 ? 1 : kPartsPerThread * used.threads);
  each_part(used, parts, [&](int64_t part) {
    Worker<T> worker(p);
    for (int64_t n = chunks * part / parts; n < chunks * (part + 1) / parts; ++n)
      if (step == Step::count) {
        ranks[n] = worker.count(n);
      } else {
        worker.fill(n, ranks[n], ranks[n + 1] - ranks[n]);
      }
  });
  if (step == Step::fill) return;
  int64_t rank = 0;
  for (int64_t n = 0; n < chunks; ++n) rank += std::exchange(ranks[n], rank);
  ranks[chunks] = rank;
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, Step step, int64_t* ranks, const Team& team) {
  if (params.wide) {
    run_as<double>(params, step, ranks, team);
  } else {
    run_as<float>(params, step, ranks, team);
  }
}

}  // namespace fastdiff::sparse_fill
