// SPDX-License-Identifier: Apache-2.0
// cached_residual_add on the CPU, compiled once per ISA.
//
// Bytes: h and every component are read once, y is written once; gates stay in the first-level cache. A block
// of the sum stays there too, while one component after the other is added to it.
#include <algorithm>

#include "attention/cached_residual_add/cached_residual_add_math.h"
#include "core/runs.h"

namespace fastdiff::cached_residual_add {
namespace {

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  explicit Worker(const Params& p) : p_(p) {}

  void block(int64_t first, int count) {
    const T* const h = elements(p_.h, first, count, sum_);
    if (h != sum_) std::copy_n(h, count, sum_);
    for (int n = 0; n < p_.components; ++n) {
      const T* const c = elements(p_.c[n], first, count, component_);
      if (p_.g[n].data) {
        const T* const g = elements(p_.g[n], first, count, gate_);
        each(
            count,
            [&](int e) { L::store(sum_ + e, with_gate(L::load(sum_ + e), L::load(g + e), L::load(c + e))); },
            [&](int e) { sum_[e] = with_gate(sum_[e], g[e], c[e]); });
      } else {
        each(
            count, [&](int e) { L::store(sum_ + e, without_gate(L::load(sum_ + e), L::load(c + e))); },
            [&](int e) { sum_[e] = without_gate(sum_[e], c[e]); });
      }
    }
    store(first, count);
  }

 private:
  template <class Lane, class One>
  static void each(int count, const Lane& lane, const One& one) {
    int e = 0;
    for (; e + L::width <= count; e += L::width) lane(e);
    for (; e < count; ++e) one(e);
  }

  // Where they are, if they lie side by side in the arithmetic's own type, else converted to `block`.
  const T* elements(const Operand& x, int64_t first, int count, T* block) const {
    const bool own = x.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
    const T* as_is = nullptr;
    for_each_run(p_.dims, p_.size, x.stride, first, count, [&](int64_t offset, int at, int run) {
      if (own && run == count && x.stride[0] == 1) {
        as_is = static_cast<const T*>(x.data) + offset;
      } else {
        load_run(x.data, x.dtype, offset, x.stride[0], run, block + at);
      }
    });
    return as_is ? as_is : block;
  }

  void store(int64_t first, int count) const {
    for_each_run(p_.dims, p_.size, p_.y.stride, first, count, [&](int64_t offset, int at, int run) {
      with_storage<T>(p_.y.dtype, [&](auto kind) {
        using S = decltype(kind);
        S* const y = static_cast<S*>(p_.y.data) + offset;
        if (p_.y.stride[0] == 1) return store_side_by_side(y, sum_ + at, run);
        for (int e = 0; e < run; ++e) y[e * p_.y.stride[0]] = narrow<S>(sum_[at + e]);
      });
    });
  }

  template <class S>
  void store_side_by_side(S* y, const T* sum, int count) const {
    constexpr uintptr_t kRegister = L::width * sizeof(S);
    int e = 0;
    if (p_.stream) {  // non-temporal stores want whole aligned registers
      for (; e < count && reinterpret_cast<uintptr_t>(y + e) % kRegister != 0; ++e) y[e] = narrow<S>(sum[e]);
      for (; e + L::width <= count; e += L::width) L::stream(y + e, L::load(sum + e));
    }
    for (; e + L::width <= count; e += L::width) L::store(y + e, L::load(sum + e));
    for (; e < count; ++e) y[e] = narrow<S>(sum[e]);
  }

  const Params& p_;
  alignas(64) T sum_[kTile], component_[kTile], gate_[kTile];
};

template <class T>
void run_blocks(const Params& p, int64_t begin, int64_t end) {
  Worker<T> worker(p);
  for (int64_t first = begin; first < end; first += kTile)
    worker.block(first, static_cast<int>(std::min(kTile, end - first)));
  if (p.stream) stream_fence();
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, int64_t begin, int64_t end) {
  if (params.wide) {
    run_blocks<double>(params, begin, end);
  } else {
    run_blocks<float>(params, begin, end);
  }
}

}  // namespace fastdiff::cached_residual_add
