// SPDX-License-Identifier: Apache-2.0
// cached_residual_add on the CPU, compiled once per ISA.
//
// Bytes: h and every component are read once, y is written once; gates stay in the first-level cache.
//
// Tensors of one dtype that lie side by side, what models have, are read in one loop: a sum stays in
// registers while one component after the other is added to it, and all streams go forward together, so that
// memory has requests of all of them. Others go through blocks: of any dtype and strides, converted, with the
// sum in the first-level cache.
#include <algorithm>

#include "attention/cached_residual_add/cached_residual_add_math.h"
#include "core/runs.h"

namespace fastdiff::cached_residual_add {
namespace {

// ---- tensors that lie side by side -----------------------------------------------------------------

// Of h, y and components S, of gates G.
template <class T, class S, class G>
class Streams {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  explicit Streams(const Params& p) : p_(p) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end;) {
      int64_t at[kMaxDims] = {}, rest = first;
      for (int d = 0; d < p_.dims; ++d) {
        at[d] = d + 1 < p_.dims ? rest % p_.size[d] : rest;
        rest /= p_.size[d];
      }
      const int64_t count = std::min(p_.size[0] - at[0], end - first);
      enter_row(at);
      add_row(count);
      first += count;
    }
  }

 private:
  struct Term {
    const S* component;
    const G* gate;  // null: 1
    bool is_one;    // for all elements of the row
  };

  void enter_row(const int64_t* at) {
    const auto place = [&](const Operand& x) {
      int64_t offset = 0;
      for (int d = 0; d < p_.dims; ++d) offset += at[d] * x.stride[d];
      return offset;
    };
    h_ = static_cast<const S*>(p_.h.data) + place(p_.h);
    y_ = static_cast<S*>(p_.y.data) + place(p_.y);
    for (int n = 0; n < p_.components; ++n) {
      const Operand& gate = p_.g[n];
      terms_[n] = {static_cast<const S*>(p_.c[n].data) + place(p_.c[n]),
                   gate.data ? static_cast<const G*>(gate.data) + place(gate) : nullptr, gate.stride[0] == 0};
    }
  }

  void add_row(int64_t count) {
    constexpr uintptr_t kRegister = L::width * sizeof(S);
    constexpr int kMany = 4 * L::width;
    int64_t e = 0;
    if (p_.stream) {  // non-temporal stores want whole aligned registers
      for (; e < count && reinterpret_cast<uintptr_t>(y_ + e) % kRegister != 0; ++e) add_one(e);
      for (; e + kMany <= count; e += kMany) add_registers<4, true>(e);
    } else {
      for (; e + kMany <= count; e += kMany) add_registers<4, false>(e);
    }
    for (; e + L::width <= count; e += L::width) add_registers<1, false>(e);
    for (; e < count; ++e) add_one(e);
  }

  template <int kRegisters, bool kStream>
  void add_registers(int64_t e) {
    constexpr int w = L::width;
    V sum[kRegisters];
    for (int r = 0; r < kRegisters; ++r) sum[r] = L::load(h_ + e + r * w);
    for (int n = 0; n < p_.components; ++n) {
      const Term& term = terms_[n];
      const S* const c = term.component + e;
      if (term.gate == nullptr) {
        for (int r = 0; r < kRegisters; ++r) sum[r] = without_gate(sum[r], L::load(c + r * w));
      } else if (term.is_one) {
        const V gate = splat<V>(widened<T>(*term.gate));
        for (int r = 0; r < kRegisters; ++r) sum[r] = with_gate(sum[r], gate, L::load(c + r * w));
      } else {
        const G* const g = term.gate + e;
        for (int r = 0; r < kRegisters; ++r)
          sum[r] = with_gate(sum[r], L::load(g + r * w), L::load(c + r * w));
      }
    }
    for (int r = 0; r < kRegisters; ++r) {
      if constexpr (kStream) {
        L::stream(y_ + e + r * w, sum[r]);
      } else {
        L::store(y_ + e + r * w, sum[r]);
      }
    }
  }

  void add_one(int64_t e) {
    T sum = widened<T>(h_[e]);
    for (int n = 0; n < p_.components; ++n) {
      const Term& term = terms_[n];
      const T c = widened<T>(term.component[e]);
      sum = term.gate == nullptr ? without_gate(sum, c)
                                 : with_gate(sum, widened<T>(term.gate[term.is_one ? 0 : e]), c);
    }
    y_[e] = narrow<S>(sum);
  }

  const Params& p_;
  const S* h_ = nullptr;
  S* y_ = nullptr;
  Term terms_[kMaxComponents];
};

// Whether all is as Streams wants it, in rows that are worth the way to them; then also the gates' dtype.
template <class T>
bool are_streams(const Params& p, DType& of_gates) {
  const auto fits = [&](const Operand& x) {
    return x.stride[0] == 1 && x.dtype == p.y.dtype && (x.dtype == DType::f64) == (sizeof(T) == 8);
  };
  bool all = p.size[0] >= 4 * Lanes<T>::width && fits(p.h) && fits(p.y);
  const Operand* gate = nullptr;
  for (int n = 0; n < p.components; ++n) {
    const Operand& g = p.g[n];
    all = all && fits(p.c[n]);
    if (g.data == nullptr) continue;
    all = all && (g.stride[0] == 0 || g.stride[0] == 1) && (g.dtype == DType::f64) == (sizeof(T) == 8) &&
          (gate == nullptr || gate->dtype == g.dtype);
    gate = &g;
  }
  of_gates = gate ? gate->dtype : p.y.dtype;
  return all;
}

// ---- any others ------------------------------------------------------------------------------------

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
  if (DType of_gates; are_streams<T>(p, of_gates)) {
    with_storage<T>(p.y.dtype, [&]<class S>(S) {
      with_storage<T>(of_gates, [&]<class G>(G) { Streams<T, S, G>(p).run(begin, end); });
    });
    if (p.stream) stream_fence();
    return;
  }
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
