// SPDX-License-Identifier: Apache-2.0
// lp_range_search on the CPU, compiled once per ISA.
//
// 64 elements stay in registers while all candidates go by, each with its 16 sums in the first-level cache.
#include <algorithm>

#include "core/runs.h"
#include "quant/lp_range_search/lp_range_search_math.h"

namespace fastdiff::lp_range_search {
namespace {

constexpr int64_t kSerial = 1 << 14;  // products of elements and candidates that are left to one thread
constexpr int64_t kPartsPerThread = 4;

// Of a chunk's elements that are numbers; `poison` is NaN if one is not finite, else 0.
struct Range {
  double lowest, highest, poison;
};
static_assert(sizeof(Range) == kRangeNumbers * sizeof(double));

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int w = L::width, kRegisters = kLanes / w;

 public:
  explicit Worker(const Params& p) : p_(p) {}

  Range range(int64_t row, int64_t chunk) {
    const int count = load(row, chunk);
    V lowest = splat<V>(T(0)), highest = lowest, poison = lowest;
    for (int e = 0; e < count; e += w) {
      const V x = L::load(x_ + e);
      lowest = at_most(x, lowest);
      highest = at_least(x, highest);
      poison = fma_(x, splat<V>(T(0)), poison);
    }
    alignas(64) T low[w], high[w];
    L::store(low, lowest);
    L::store(high, highest);
    return {*std::min_element(low, low + w), *std::max_element(high, high + w), L::total(poison)};
  }

  // The sums of all candidates over a chunk.
  void score(int64_t row, int64_t chunk, const Grid& grid, double* sums) {
    const int count = load(row, chunk);
    for (int c = 0; c < p_.candidates; ++c) {
      inverse_[c] = inverse_of<T>(grid, c);
      std::fill_n(lanes_[c], kLanes, T(0));
    }
    for (int e = 0; e < count; e += kTurn)
      for (int c = 0; c < p_.candidates; ++c) add_turn(x_ + e, inverse_[c], grid, lanes_[c]);
    for (int c = 0; c < p_.candidates; ++c) {
      T* const lane = lanes_[c];
      for (int half = kLanes / 2; half >= w; half /= 2)
        for (int l = 0; l < half; l += w)
          L::store(lane + l, add(L::load(lane + l), L::load(lane + l + half)));
      sums[c] = static_cast<double>(L::total(L::load(lane)));
    }
  }

 private:
  // Elements of a chunk, zeros up to the turn's end; returns how many that are.
  int load(int64_t row, int64_t chunk) {
    const int64_t first = chunk * kChunk, base = row * p_.x.sample_stride;
    const int count = static_cast<int>(std::min<int64_t>(kChunk, p_.numel - first));
    for_each_run(p_.dims, p_.size, p_.x.stride, first, count, [&](int64_t offset, int at, int run) {
      load_run(p_.x.data, p_.x.dtype, base + offset, p_.x.stride[0], run, x_ + at);
    });
    const int whole = (count + kTurn - 1) / kTurn * kTurn;
    std::fill(x_ + count, x_ + whole, T(0));
    return whole;
  }

  [[gnu::always_inline]] void add_turn(const T* x, T inverse, const Grid& grid, T* lane) const {
    const T lowest = static_cast<T>(grid.lowest), highest = static_cast<T>(grid.highest);
    if constexpr (sizeof(T) == sizeof(double)) {  // powers are float32: one element at a time
      for (int l = 0; l < kLanes; ++l) {
        T e[4];
        for (int n = 0; n < 4; ++n) e[n] = error_of(p_, x[n * kLanes + l], inverse, lowest, highest);
        lane[l] = lane[l] + ((e[0] + e[1]) + (e[2] + e[3]));
      }
    } else {
      for (int l = 0; l < kLanes; l += w) {
        V e[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)
          e[n] = error_of(p_, L::load(x + n * kLanes + l), splat<V>(inverse), lowest, highest);
        L::store(lane + l, add(L::load(lane + l), add(add(e[0], e[1]), add(e[2], e[3]))));
      }
    }
  }

  const Params& p_;
  alignas(64) T x_[kChunk];
  alignas(64) T lanes_[kMostCandidates][kLanes];
  T inverse_[kMostCandidates];
};

template <class T>
void run_as(const Params& p, double* scratch, const Team& team) {
  const int64_t chunks = chunks_of(p), items = p.rows * chunks;
  const Team& used = p.rows * p.numel * p.candidates < kSerial ? kAlone : team;
  const int64_t parts = std::min<int64_t>(items, used.threads == 1 ? 1 : kPartsPerThread * used.threads);
  const auto each_chunk = [&](const auto& body) {
    each_part(used, parts, [&](int64_t part) {
      Worker<T> worker(p);
      for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n) body(worker, n);
    });
  };
  auto* const ranges = reinterpret_cast<Range*>(scratch);
  double *const peaks = scratch + kRangeNumbers * items, *const sums = peaks + p.rows;
  each_chunk([&](Worker<T>& worker, int64_t n) { ranges[n] = worker.range(n / chunks, n % chunks); });

  int signs = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    double peak = 0, poison = 0;
    for (int64_t n = row * chunks; n < (row + 1) * chunks; ++n) {
      signs |= (ranges[n].lowest < 0 ? kNegative : 0) | (ranges[n].highest > 0 ? kPositive : 0);
      peak = std::max({peak, -ranges[n].lowest, ranges[n].highest});
      poison += ranges[n].poison;
    }
    peaks[row] = peak + poison;
  }
  const auto grid = [&](int64_t row) { return grid_of(p, signs, peaks[row]); };
  each_chunk([&](Worker<T>& worker, int64_t n) {
    const Grid own = grid(n / chunks);
    if (is_searched(p, own)) worker.score(n / chunks, n % chunks, own, sums + n * p.candidates);
  });

  double total[kMostCandidates];
  for (int64_t row = 0; row < p.rows; ++row) {
    const double* const of_row = sums + row * chunks * p.candidates;
    std::fill_n(total, p.candidates, 0.0);
    if (is_searched(p, grid(row)))
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int c = 0; c < p.candidates; ++c) total[c] = total[c] + of_row[chunk * p.candidates + c];
    choose(p, row, grid(row), [&](int c) { return total[c]; });
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.wide) {
    run_as<double>(params, static_cast<double*>(scratch), team);
  } else {
    run_as<float>(params, static_cast<double*>(scratch), team);
  }
}

}  // namespace fastdiff::lp_range_search
