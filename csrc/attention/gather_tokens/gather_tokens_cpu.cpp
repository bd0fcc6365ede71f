// SPDX-License-Identifier: Apache-2.0
// gather_tokens on the CPU, compiled once per ISA.
//
// Rows that lie as they are stored go through registers; others through a block in the first-level cache.
#include <algorithm>

#include "attention/gather_tokens/gather_tokens_math.h"
#include "core/runs.h"

namespace fastdiff::gather_tokens {
namespace {

using attention::Sequences;

constexpr int64_t kBlock = 1024;  // elements

template <class T>
class Worker {
  using L = Lanes<T>;

 public:
  explicit Worker(const Params& p) : p_(p), is_plain_(is_plain(p.x) && is_plain(p.y)) {
    if (p.residual.data != nullptr) is_plain_ = is_plain_ && is_plain(p.residual);
  }

  void row(int64_t b, int64_t m) {
    const Source source = source_of(p_, b, m, p_.index.of(b, m));
    const bool as_it_is = is_plain_ && source.from.data != nullptr && is_plain(source.from);
    if (!as_it_is) return through_block(source, b, m);
    with_storage<T>(p_.y.dtype, [&]<class S>(S) {
      const S* const x = static_cast<const S*>(source.from.data) + source.at;
      S* const y = static_cast<S*>(p_.y.data) + p_.y.at(b, m);
      if (p_.residual.data == nullptr) {
        each(y, [&](int64_t c) { return L::load(x + c); }, [&](int64_t c) { return widened<T>(x[c]); });
      } else {
        const S* const r = static_cast<const S*>(p_.residual.data) + p_.residual.at(b, m);
        each(
            y, [&](int64_t c) { return add(L::load(x + c), L::load(r + c)); },
            [&](int64_t c) { return widened<T>(x[c]) + widened<T>(r[c]); });
      }
    });
  }

 private:
  // Of the dtype of y, the elements of a token side by side.
  bool is_plain(const Sequences& t) const {
    return t.dtype == p_.y.dtype && (t.channel == 1 || p_.channels == 1);
  }

  template <class S, class Lane, class One>
  void each(S* y, const Lane& lane, const One& one) const {
    constexpr uintptr_t kRegister = L::width * sizeof(S);
    int64_t c = 0;
    if (p_.stream) {  // non-temporal stores want whole aligned registers
      for (; c < p_.channels && reinterpret_cast<uintptr_t>(y + c) % kRegister != 0; ++c)
        y[c] = narrow<S>(one(c));
      for (; c + L::width <= p_.channels; c += L::width) L::stream(y + c, lane(c));
    }
    for (; c + L::width <= p_.channels; c += L::width) L::store(y + c, lane(c));
    for (; c < p_.channels; ++c) y[c] = narrow<S>(one(c));
  }

  void through_block(const Source& source, int64_t b, int64_t m) {
    for (int64_t first = 0; first < p_.channels; first += kBlock) {
      const int64_t count = std::min(kBlock, p_.channels - first);
      load(source.from, source.at, first, count, x_);
      if (p_.residual.data != nullptr) {
        load(p_.residual, p_.residual.at(b, m), first, count, residual_);
        for (int64_t c = 0; c < count; ++c) x_[c] = x_[c] + residual_[c];
      }
      for (int64_t c = 0; c < count; ++c)
        store_as(p_.y.data, p_.y.dtype, p_.y.at(b, m) + (first + c) * p_.y.channel, x_[c]);
    }
  }

  static void load(const Sequences& t, int64_t at, int64_t first, int64_t count, T* block) {
    if (t.data == nullptr) {
      std::fill_n(block, count, T(0));
    } else {
      load_run(t.data, t.dtype, at + first * t.channel, t.channel, count, block);
    }
  }

  const Params& p_;
  bool is_plain_;
  alignas(64) T x_[kBlock], residual_[kBlock];
};

template <class T>
void run_rows(const Params& p, int64_t begin, int64_t end) {
  Worker<T> worker(p);
  for (int64_t n = begin; n < end; ++n) worker.row(n / p.places, n % p.places);
  if (p.stream) stream_fence();
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

}  // namespace fastdiff::gather_tokens
