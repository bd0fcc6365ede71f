// SPDX-License-Identifier: Apache-2.0
// block_means on the CPU, compiled once per ISA.
//
// Bytes: x is read once, token after token; the sums of a block stay in the first-level cache.
#include "attention/block_means/block_means_math.h"
#include "core/runs.h"

namespace fastdiff::block_means {
namespace {

constexpr int64_t kColumns = 512;            // whose sums are formed at once
constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread

// sum[e] += x[e]
template <class T, class S>
void add_run(const S* x, int64_t count, T* sum) {
  using L = Lanes<T>;
  int64_t e = 0;
  for (; e + L::width <= count; e += L::width) L::store(sum + e, add(L::load(sum + e), L::load(x + e)));
  for (; e < count; ++e) sum[e] = add(sum[e], widened<T>(x[e]));
}

// The means of one block in the columns [first, first + count).
template <class T>
void mean_columns(const Params& p, int64_t list, int64_t r, int64_t first, int64_t count) {
  alignas(64) T sum[kColumns], row[kColumns];
  const attention::Heads &x = p.x, &y = p.y;
  const int64_t b = list / p.heads, h = list % p.heads, tokens = tokens_of(p, r);
  const int64_t at = x.at(b, h, r * p.block) + first * x.element;
  std::fill_n(sum, count, T(0));
  if (x.element == 1) {
    with_storage<T>(x.dtype, [&]<class S>(S) {
      const S* const token = static_cast<const S*>(x.data) + at;
      for (int64_t n = 0; n < tokens; ++n) add_run(token + n * x.row, count, sum);
    });
  } else {
    for (int64_t n = 0; n < tokens; ++n) {
      load_run(x.data, x.dtype, at + n * x.row, x.element, count, row);
      add_run(row, count, sum);
    }
  }
  const int64_t to = y.at(b, h, r) + first * y.element;
  for (int64_t e = 0; e < count; ++e) static_cast<T*>(y.data)[to + e * y.element] = mean_of(sum[e], tokens);
}

template <class T>
void run_all(const Params& p, const Team& team) {
  const int64_t items = p.lists * p.blocks;
  const int64_t numel = p.lists * p.x.tokens * p.dim;
  const int64_t parts = numel < kSerialNumel ? 1 : std::min<int64_t>(team.threads, items);
  each_part(team, parts, [&](int64_t part) {
    for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n)
      for (int64_t first = 0; first < p.dim; first += kColumns)
        mean_columns<T>(p, n / p.blocks, n % p.blocks, first, std::min(kColumns, p.dim - first));
  });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, const Team& team) {
  params.wide() ? run_all<double>(params, team) : run_all<float>(params, team);
}

}  // namespace fastdiff::block_means
