// SPDX-License-Identifier: Apache-2.0
// The CPU loop of linear_step, compiled once per ISA.
//
// A sample's elements are walked in blocks that stay in the first-level cache. Per block, a row is a few
// passes, each a chain of up to kChain fused multiply-adds with pointers and coefficients in registers.
// Operands that are dense in the block are read where they lie; all others are gathered into a scratch block
// first, so there is one arithmetic loop for every layout. A block is long enough that what is decided once
// per block (dtypes, chain lengths, addresses) costs a few percent of it.
#include <algorithm>

#include "solver/linear_step/linear_step_math.h"

namespace fastdiff::linear_step {
namespace {

constexpr int kBlockBytes = 4096;                    // of one operand in the arithmetic type
constexpr int kChain = 4;                            // terms per pass
constexpr int kSources = kMaxInputs + kMaxRows + 1;  // inputs, earlier rows, noise

template <class T>
struct Term {
  int source;    // k < K: input, K + j: row, K + M: noise
  T c, gate_c;
  int map;       // -1: none
  bool varying;  // the coefficient differs between elements
};

template <class T>
struct Program {
  int terms[kMaxRows + 1] = {};  // row i owns term[terms[i] .. terms[i+1])
  Term<T> term[kMaxRows * (kMaxInputs + kMaxRows)];
  T lo[kMaxRows], hi[kMaxRows];
  bool bounded[kMaxRows];
  bool uses_noise = false, uses_gate = false;
  int used[kMaxInputs], used_count = 0;  // inputs that any row reads
  int64_t step = 0;
};

template <class T>
Program<T> build(const Params& p, int64_t sample) {
  Program<T> program;
  program.step = p.step ? *p.step : 0;
  const T infinity = static_cast<T>(__builtin_inf());
  bool is_used[kMaxInputs] = {};
  int count = 0;
  for (int i = 0; i < p.rows; ++i) {
    for (int column = 0; column <= p.inputs + p.rows; ++column) {
      const bool later_row = column >= p.inputs + i && column < p.inputs + p.rows;
      if (later_row) continue;
      const bool noise = column == p.inputs + p.rows;
      const T scale = noise ? static_cast<T>(noise_scale(p.complex)) : T(1);
      const T c = scale * coefficient<T>(p.table, program.step, sample, i, column);
      const T gate_c = p.gate_table.data ? scale * coefficient<T>(p.gate_table, program.step, sample, i, column) : T(0);
      if (c == T(0) && gate_c == T(0)) continue;
      const int map = p.map.data && column < p.inputs ? p.map_index[i * p.inputs + column] : -1;
      program.term[count++] = {column, c, gate_c, map, gate_c != T(0) || map >= 0};
      program.uses_noise |= noise;
      program.uses_gate |= gate_c != T(0);
      if (column < p.inputs) is_used[column] = true;
    }
    program.terms[i + 1] = count;
    program.lo[i] = coefficient<T>(p.table, program.step, sample, i, p.inputs + p.rows + 1);
    program.hi[i] = coefficient<T>(p.table, program.step, sample, i, p.inputs + p.rows + 2);
    program.bounded[i] = program.lo[i] != -infinity || program.hi[i] != infinity;
  }
  for (int k = 0; k < p.inputs; ++k)
    if (is_used[k]) program.used[program.used_count++] = k;
  return program;
}

// A position in one sample's space: the element and the coordinates it has in each merged dimension.
struct Cursor {
  int64_t at[kMaxDims];

  Cursor(const Params& p, int64_t element) {
    for (int d = 0; d < p.dims; ++d) {
      at[d] = element % p.size[d];
      element /= p.size[d];
    }
  }
  void advance(const Params& p, int64_t elements) {  // within or to the end of the innermost run
    at[0] += elements;
    for (int d = 0; d + 1 < p.dims && at[d] == p.size[d]; ++d) {
      at[d] = 0;
      ++at[d + 1];
    }
  }
  int64_t offset(const Params& p, const Operand& operand) const {
    int64_t sum = 0;
    for (int d = 0; d < p.dims; ++d) sum += at[d] * operand.stride[d];
    return sum;
  }
};

// Calls piece(cursor, first, count) for each innermost run inside the `count` elements from `cursor`.
template <class Piece>
void for_each_run(const Params& p, Cursor cursor, int count, const Piece& piece) {
  for (int done = 0; done < count;) {
    const int run = static_cast<int>(std::min<int64_t>(count - done, p.size[0] - cursor.at[0]));
    piece(cursor, done, run);
    cursor.advance(p, run);
    done += run;
  }
}

// sum[e] = (kFirst ? -0 : sum[e]) + c_0 x_0[e] + ... + c_{N-1} x_{N-1}[e]
template <class T, class S, int N, bool kFirst>
void chain(T* sum, const void* const* x, const T* c, int count) {
  using L = Lanes<T>;
  typename L::V coefficient[N];
  const S* source[N];
  for (int n = 0; n < N; ++n) {
    coefficient[n] = splat<typename L::V>(c[n]);
    source[n] = static_cast<const S*>(x[n]);
  }
#pragma GCC unroll 4
  for (int e = 0; e < count; e += L::width) {
    typename L::V s = kFirst ? splat<typename L::V>(empty_sum<T>()) : L::load(sum + e);
    for (int n = 0; n < N; ++n) s = add_term(s, coefficient[n], L::load(source[n] + e));
    L::store(sum + e, s);
  }
}

template <class T, class S, bool kFirst>
void chain_of(int terms, T* sum, const void* const* x, const T* c, int count) {
  static_assert(kChain == 4, "one case per length");
  switch (terms) {
    case 1:
      return chain<T, S, 1, kFirst>(sum, x, c, count);
    case 2:
      return chain<T, S, 2, kFirst>(sum, x, c, count);
    case 3:
      return chain<T, S, 3, kFirst>(sum, x, c, count);
    default:
      return chain<T, S, 4, kFirst>(sum, x, c, count);
  }
}

// Calls body(S{}) with the storage type S that kernels of arithmetic type T read and write directly.
template <class T, class Body>
void with_storage(DType dtype, const Body& body) {
  if constexpr (sizeof(T) == sizeof(double)) {
    body(double{});
  } else if (dtype == DType::f16) {
    body(half_t{});
  } else if (dtype == DType::bf16) {
    body(bfloat16_t{});
  } else {
    body(float{});
  }
}

template <class T>
class Loop {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int kBlock = kBlockBytes / sizeof(T);
  static_assert(kBlock % (4 * Lanes<float>::width) == 0, "whole registers, and whole calls of the noise generator");

 public:
  Loop(const Params& p, int64_t sample) : p_(p), sample_(sample), program_(build<T>(p, sample)) {
    if (program_.uses_noise) key_ = noise_key(p, program_.step, sample);
    source_[p.inputs + p.rows] = {noise_, kArithmetic};
    for (int i = 0; i < p.rows; ++i) in_place_[i] = may_sum_in_place(i);
  }

  // Elements [begin, end) of the sample: whole registers where an innermost run is long enough, the rest gathered.
  void run(int64_t begin, int64_t end) {
    const bool short_runs = p_.size[0] < 2 * L::width;
    Cursor cursor(p_, begin);
    for (int64_t i = begin; i < end;) {
      const int64_t left_in_run = std::min(end - i, p_.size[0] - cursor.at[0]);
      const int64_t head = p_.stream ? std::min(left_in_run, elements_to_alignment(cursor)) : 0;
      const int64_t whole = left_in_run / L::width * L::width;
      int64_t count;
      if (short_runs) {
        count = std::min<int64_t>(kBlock, end - i);
        gathered_block(cursor, static_cast<int>(count));
      } else if (head > 0 || whole == 0) {
        count = head > 0 ? head : left_in_run;
        gathered_block(cursor, static_cast<int>(count));
      } else {
        count = whole;
        dense_blocks(cursor, whole);
      }
      i += count;
      if (count <= p_.size[0] - cursor.at[0]) {
        cursor.advance(p_, count);
      } else {
        cursor = Cursor(p_, i);
      }
    }
    if (p_.stream) stream_fence();
  }

 private:
  static constexpr DType kArithmetic = sizeof(T) == sizeof(double) ? DType::f64 : DType::f32;

  struct Source {
    const void* data;
    DType dtype;
  };

  char* address(const Operand& operand, const Cursor& cursor) const {
    const int64_t elements = sample_ * operand.sample_stride + cursor.offset(p_, operand);
    return static_cast<char*>(operand.data) + elements * size_of(part_of(operand.dtype));
  }

  // The arithmetic loops read and write these dtypes where they lie.
  static bool is_direct(DType dtype) { return (dtype == DType::f64) == (kArithmetic == DType::f64); }

  // Row i may be summed up in the output's own memory: that needs no rounding, no store past the caches, and
  // no input that is still to be read there. (An output is one of the inputs or shares nothing with them.)
  bool may_sum_in_place(int i) const {
    const Operand& y = p_.output[i];
    if (!y.data || y.stride[0] != 1 || part_of(y.dtype) != kArithmetic || p_.stream) return false;
    for (int t = program_.terms[i]; t < program_.terms[p_.rows]; ++t) {
      const int k = program_.term[t].source;
      if (k < p_.inputs && p_.input[k].data == y.data) return false;
    }
    return true;
  }

  // Elements before the first stored row is aligned for non-temporal stores; 0 if it is, or never can be.
  int64_t elements_to_alignment(const Cursor& cursor) const {
    for (int i = 0; i < p_.rows; ++i) {
      const Operand& out = p_.output[i];
      if (!out.data || out.stride[0] != 1) continue;
      const uintptr_t bytes = size_of(part_of(out.dtype));
      const uintptr_t past = reinterpret_cast<uintptr_t>(address(out, cursor)) % kCacheLine;
      return past % bytes || past == 0 ? 0 : static_cast<int64_t>((kCacheLine - past) / bytes);
    }
    return 0;
  }

  // `count` elements (whole registers) inside one innermost run, from `cursor`.
  void dense_blocks(Cursor cursor, int64_t count) {
    for (int64_t done = 0; done < count; done += kBlock) {
      const int block = static_cast<int>(std::min<int64_t>(kBlock, count - done));
      for (int u = 0; u < program_.used_count; ++u) {
        const int k = program_.used[u];
        const Operand& x = p_.input[k];
        if (x.stride[0] == 1 && is_direct(x.dtype)) {
          source_[k] = {address(x, cursor), part_of(x.dtype)};
        } else {
          gather(k, cursor, block);
        }
      }
      for (int i = 0; i < p_.rows; ++i)
        sum_[i] = in_place_[i] ? reinterpret_cast<T*>(address(p_.output[i], cursor)) : rows_[i];
      compute(cursor, block);
      for (int i = 0; i < p_.rows; ++i) {
        const Operand& y = p_.output[i];
        if (!y.data || in_place_[i]) continue;
        if (y.stride[0] == 1 && is_direct(y.dtype)) {
          store(address(y, cursor), y.dtype, rows_[i], block);
        } else {
          scatter(y, cursor, block, rows_[i]);
        }
      }
      cursor.at[0] += block;
    }
  }

  // `count` <= kBlock elements from `cursor`, across runs.
  void gathered_block(const Cursor& cursor, int count) {
    for (int u = 0; u < program_.used_count; ++u) gather(program_.used[u], cursor, count);
    for (int i = 0; i < p_.rows; ++i) sum_[i] = rows_[i];
    compute(cursor, count);
    for (int i = 0; i < p_.rows; ++i)
      if (p_.output[i].data) scatter(p_.output[i], cursor, count, rows_[i]);
  }

  void gather(int k, const Cursor& cursor, int count) {
    gather_into(p_.input[k], cursor, count, gathered_[k]);
    source_[k] = {gathered_[k], kArithmetic};
  }

  // Elements of an operand from `cursor` on, converted, into `block`.
  void gather_into(const Operand& operand, const Cursor& cursor, int count, T* block) const {
    for_each_run(p_, cursor, count, [&](const Cursor& at, int first, int run) {
      const char* base = address(operand, at);
      for (int j = 0; j < run; ++j) block[first + j] = load_as<T>(base, operand.dtype, j * operand.stride[0]);
    });
  }

  void scatter(const Operand& operand, const Cursor& cursor, int count, const T* block) const {
    for_each_run(p_, cursor, count, [&](const Cursor& at, int first, int run) {
      char* base = address(operand, at);
      for (int j = 0; j < run; ++j) store_as<T>(base, operand.dtype, j * operand.stride[0], block[first + j]);
    });
  }

  // All rows of one block into sum_. What an input may still be read from is not written before the last row.
  void compute(const Cursor& cursor, int count) {
    if (program_.uses_noise) fill_noise(cursor, count);
    if (program_.uses_gate) fill_gate(cursor, count);
    for (int i = 0; i < p_.rows; ++i) {
      T* sum = sum_[i];
      source_[p_.inputs + i] = {sum, kArithmetic};
      const int end = program_.terms[i + 1];
      if (program_.terms[i] == end) std::fill_n(sum, count, T(0));
      for (int t = program_.terms[i]; t < end;) t += add_terms(sum, t, end, t == program_.terms[i], cursor, count);
      if (!program_.bounded[i]) continue;
      const V lo = splat<V>(program_.lo[i]), hi = splat<V>(program_.hi[i]);
      for (int e = 0; e < count; e += L::width) L::store(sum + e, clamp(L::load(sum + e), lo, hi));
    }
  }

  // One pass: as many of the terms t, t + 1, ... as have one storage type, up to kChain. Returns how many.
  int add_terms(T* sum, int t, int end, bool first, const Cursor& cursor, int count) {
    if (program_.term[t].varying) {
      add_varying(sum, program_.term[t], first, cursor, count);
      return 1;
    }
    const DType dtype = source_[program_.term[t].source].dtype;
    const void* x[kChain] = {};
    T c[kChain] = {};
    int terms = 0;
    for (; terms < kChain && t + terms < end; ++terms) {
      const Term<T>& term = program_.term[t + terms];
      if (term.varying || source_[term.source].dtype != dtype) break;
      x[terms] = source_[term.source].data;
      c[terms] = term.c;
    }
    with_storage<T>(dtype, [&]<class S>(S) {
      first ? chain_of<T, S, true>(terms, sum, x, c, count) : chain_of<T, S, false>(terms, sum, x, c, count);
    });
    return terms;
  }

  void add_varying(T* sum, const Term<T>& term, bool first, const Cursor& cursor, int count) {
    fill_coefficients(term, cursor, count);
    const Source& x = source_[term.source];
    if (first) std::fill_n(sum, count, empty_sum<T>());
    with_storage<T>(x.dtype, [&]<class S>(S) {
      const S* source = static_cast<const S*>(x.data);
      for (int e = 0; e < count; e += L::width)
        L::store(sum + e, add_varying_term(L::load(sum + e), L::load(coefficients_ + e), L::load(source + e)));
    });
  }

  // The coefficient of a gated or mapped term, element by element.
  void fill_coefficients(const Term<T>& term, const Cursor& cursor, int count) {
    if (term.map >= 0) {
      Operand map = p_.map;
      const int64_t first = program_.step * p_.map_step_stride + term.map * p_.map_stride;
      map.data = static_cast<char*>(map.data) + first * size_of(map.dtype);
      gather_into(map, cursor, count, map_);
    }
    const V c = splat<V>(term.c), gate_c = splat<V>(term.gate_c);
    for (int e = 0; e < count; e += L::width) {
      V effective = term.gate_c == T(0) ? c : gated(c, gate_c, L::load(gate_ + e));
      if (term.map >= 0) effective = mul(effective, L::load(map_ + e));
      L::store(coefficients_ + e, effective);
    }
  }

  void fill_gate(const Cursor& cursor, int count) {
    if (p_.mask.data) {
      gather_into(p_.mask, cursor, count, gate_);
    } else {
      std::fill_n(gate_, count, T(1));
    }
    if (p_.channel_dim < 0) return;
    for_each_run(p_, cursor, count, [&](const Cursor& at, int first, int run) {
      for (int j = 0; j < run; ++j) {
        const int64_t channel = at.at[p_.channel_dim] + (p_.channel_dim == 0 ? j : 0);
        if (channel < p_.channel_begin || channel >= p_.channel_end) gate_[first + j] = T(0);
      }
    });
  }

  // z of each element of the block. Consecutive indices share Philox blocks; others are computed one by one.
  void fill_noise(const Cursor& cursor, int count) {
    float z[kBlock];
    const bool one_run = count <= p_.size[0] - cursor.at[0];
    if (one_run && p_.index.stride[0] == 1) {
      const int64_t first = sample_ * p_.index.sample_stride + cursor.offset(p_, p_.index);
      consecutive_normals(static_cast<uint64_t>(first), count, z);
    } else {
      scattered_normals(cursor, count, z);
    }
    std::copy_n(z, count, noise_);
  }

  void consecutive_normals(uint64_t first, int count, float* z) const {
    using F = Lanes<float>;
    constexpr int kSpan = 4 * F::width;  // normals per call: one Philox block per lane
    const uint64_t aligned = first / kSpan * kSpan;  // so that the low word never wraps within a register
    for (uint64_t start = aligned; start < first + count; start += kSpan) {
      const uint64_t block = start / 4;
      const auto low = fastdiff::add(splat<typename F::U>(static_cast<uint32_t>(block)), F::iota());
      typename F::V normal[4];
      normal_block(low, splat<typename F::U>(static_cast<uint32_t>(block >> 32)), key_, normal);
      float word[4][F::width];
      for (int w = 0; w < 4; ++w) F::store(word[w], normal[w]);
      for (int e = 0; e < kSpan; ++e) {
        const int64_t at = static_cast<int64_t>(start - first) + e;
        if (at >= 0 && at < count) z[at] = word[e % 4][e / 4];
      }
    }
  }

  void scattered_normals(const Cursor& cursor, int count, float* z) const {
    using F = Lanes<float>;
    uint32_t low[kBlock] = {}, high[kBlock] = {};
    for_each_run(p_, cursor, count, [&](const Cursor& at, int start, int run) {
      const int64_t base = sample_ * p_.index.sample_stride + at.offset(p_, p_.index);
      for (int j = 0; j < run; ++j) {
        const uint64_t index = static_cast<uint64_t>(base + j * p_.index.stride[0]);
        low[start + j] = static_cast<uint32_t>(index);
        high[start + j] = static_cast<uint32_t>(index >> 32);
      }
    });
    for (int e = 0; e < count; e += F::width)
      F::store(z + e, normal_at(F::load_words(low + e), F::load_words(high + e), key_));
  }

  void store(void* out, DType dtype, const T* block, int count) const {
    with_storage<T>(dtype, [&]<class S>(S) {
      S* y = static_cast<S*>(out);
      const bool aligned = reinterpret_cast<uintptr_t>(y) % (L::width * sizeof(S)) == 0;
      if (p_.stream && aligned) {
        for (int e = 0; e < count; e += L::width) L::stream(y + e, L::load(block + e));
      } else {
        for (int e = 0; e < count; e += L::width) L::store(y + e, L::load(block + e));
      }
    });
  }

  static constexpr uintptr_t kCacheLine = 64;

  const Params& p_;
  const int64_t sample_;
  const Program<T> program_;
  NoiseKey key_{};
  Source source_[kSources] = {};
  bool in_place_[kMaxRows] = {};
  T* sum_[kMaxRows] = {};  // where each row of the current block is formed: rows_ or the output itself
  // Lanes past a block's count compute on whatever is here; their results are never stored.
  alignas(64) T rows_[kMaxRows][kBlock];
  alignas(64) T gathered_[kMaxInputs][kBlock];
  alignas(64) T noise_[kBlock];
  alignas(64) T gate_[kBlock];
  alignas(64) T map_[kBlock];
  alignas(64) T coefficients_[kBlock];
};

template <class T>
void run_samples(const Params& p, int64_t begin, int64_t end) {
  for (int64_t sample = begin / p.numel; begin < end; ++sample) {
    const int64_t first = sample * p.numel;
    const int64_t stop = std::min(end, first + p.numel);
    Loop<T>(p, sample).run(begin - first, stop - first);
    begin = stop;
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, int64_t begin, int64_t end) {
  if (params.compute_double) {
    run_samples<double>(params, begin, end);
  } else {
    run_samples<float>(params, begin, end);
  }
}

}  // namespace fastdiff::linear_step
