// SPDX-License-Identifier: Apache-2.0
// combine_tokens on the CPU, compiled once per ISA.
//
// Sums stay in registers while a list is walked: some cache lines of every member at a time. Tokens that do
// not lie as they are stored go through a block in the first-level cache.
#include <algorithm>

#include "attention/combine_tokens/combine_tokens_math.h"
#include "core/runs.h"

namespace fastdiff::combine_tokens {
namespace {

constexpr int64_t kBlock = 1024;  // elements

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int kMost = 8;  // registers of sums

 public:
  explicit Worker(const Params& p) : p_(p) {
    is_plain_ = p.channels == 1 || (p.x.channel == 1 && p.y.channel == 1);
  }

  void row(int64_t b, int64_t m) {
    b_ = b;
    first_ = p_.offsets.of(b, m);
    last_ = p_.offsets.of(b, m + 1);
    if (!is_plain_) return through_block(m);
    with_storage<T>(p_.x.dtype, [&]<class S>(S) {
      const S* const x = static_cast<const S*>(p_.x.data);
      S* const y = static_cast<S*>(p_.y.data) + p_.y.at(b, m);
      int64_t c = registers<kMost>(x, y, 0);
      c = registers<kMost / 2>(x, y, c);
      c = registers<1>(x, y, c);
      for (; c < p_.channels; ++c) {
        T sum = T(0);
        for (int64_t e = first_; e < last_; ++e)
          sum = with_term(sum, weight(e), widened<T>(x[member(e) + c]));
        y[c] = narrow<S>(sum);
      }
    });
  }

 private:
  T weight(int64_t e) const { return weight_of<T>(p_, b_, e); }
  // The element where its token begins.
  int64_t member(int64_t e) const { return p_.x.at(b_, p_.members.of(b_, e)); }

  // As many whole steps of so many registers as there are from c on; returns where they end.
  template <int kRegisters, class S>
  int64_t registers(const S* x, S* y, int64_t c) const {
    constexpr int64_t kStep = int64_t{kRegisters} * L::width;
    for (; c + kStep <= p_.channels; c += kStep) {
      V sum[kRegisters];
#pragma GCC unroll 8
      for (int n = 0; n < kRegisters; ++n) sum[n] = splat<V>(T(0));
      for (int64_t e = first_; e < last_; ++e) {
        const T w = weight(e);
        const S* const from = x + member(e) + c;
#pragma GCC unroll 8
        for (int n = 0; n < kRegisters; ++n) sum[n] = with_term(sum[n], w, L::load(from + n * L::width));
      }
#pragma GCC unroll 8
      for (int n = 0; n < kRegisters; ++n) L::store(y + c + n * L::width, sum[n]);
    }
    return c;
  }

  void through_block(int64_t m) {
    for (int64_t c = 0; c < p_.channels; c += kBlock) {
      const int64_t count = std::min(kBlock, p_.channels - c);
      std::fill_n(sum_, count, T(0));
      for (int64_t e = first_; e < last_; ++e) {
        const T w = weight(e);
        load_run(p_.x.data, p_.x.dtype, member(e) + c * p_.x.channel, p_.x.channel, count, x_);
        for (int64_t n = 0; n < count; ++n) sum_[n] = with_term(sum_[n], w, x_[n]);
      }
      for (int64_t n = 0; n < count; ++n)
        store_as(p_.y.data, p_.y.dtype, p_.y.at(b_, m) + (c + n) * p_.y.channel, sum_[n]);
    }
  }

  const Params& p_;
  bool is_plain_;
  int64_t b_ = 0, first_ = 0, last_ = 0;  // the row's sample and entries
  alignas(64) T x_[kBlock], sum_[kBlock];
};

template <class T>
void run_rows(const Params& p, int64_t begin, int64_t end) {
  Worker<T> worker(p);
  for (int64_t n = begin; n < end; ++n) worker.row(n / p.lists, n % p.lists);
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, int64_t begin, int64_t end) {
  if (params.wide) {
    run_rows<double>(params, begin, end);
  } else {
    run_rows<float>(params, begin, end);
  }
}

}  // namespace fastdiff::combine_tokens
