// SPDX-License-Identifier: Apache-2.0
// The CPU loop of linear_step, compiled once per ISA.
//
// A sample's elements are walked in blocks that stay in the first-level cache. Per block, a row is a few
// passes, each a chain of up to kChain fused multiply-adds with pointers and coefficients in registers.
// Operands that are dense in the block are read where they lie; all others are gathered into a scratch block
// first, so there is one arithmetic loop for every layout. A block is long enough that what is decided once
// per block (dtypes, chain lengths, addresses) costs a few percent of it.
#include <algorithm>

#include "core/runs.h"
#include "solver/linear_step/linear_step_math.h"

namespace fastdiff::linear_step {
namespace {

constexpr int kBlockBytes = 4096;                    // of one operand in the arithmetic type
constexpr int64_t kShortRun = 64;                    // elements; below, gathering whole blocks costs less
constexpr int kChain = 4;                            // terms per pass
constexpr int kPassedTerms = 2;                      // more in the pass that forms the next row too
constexpr int kSources = kMaxInputs + kMaxRows + 1;  // inputs, earlier rows, noise

template <class T>
struct Term {
  int source;  // k < K: input, K + j: row, K + M: noise
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
      const T gate_c =
          p.gate_table.data ? scale * coefficient<T>(p.gate_table, program.step, sample, i, column) : T(0);
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

// What becomes of a sum: it is the row.
template <class T>
struct Keep {
  T* out;

  void operator()(int e, typename Lanes<T>::V sum) const { Lanes<T>::store(out + e, sum); }
};

// It is the last term of the next row, which may have others before it: out = c_0 x_0 + ... + c sum.
template <class T, class S, int kTerms>
struct PassOn {
  T* out;
  const S* x[kTerms + 1];
  typename Lanes<T>::V c_x[kTerms + 1], c;

  void operator()(int e, typename Lanes<T>::V sum) const {
    using L = Lanes<T>;
    typename L::V next = splat<typename L::V>(empty_sum<T>());
    for (int t = 0; t < kTerms; ++t) next = add_term(next, c_x[t], L::load(x[t] + e));
    L::store(out + e, add_term(next, c, sum));
  }
};

// finish(e, (kFirst ? -0 : sum[e]) + c_0 x_0[e] + ... + c_{N-1} x_{N-1}[e])
template <class T, class S, int N, bool kFirst, class Finish>
void chain(const T* sum, const void* const* x, const T* c, int count, const Finish& finish) {
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
    finish(e, s);
  }
}

template <class T, class S, bool kFirst, class Finish>
void chain_of(int terms, const T* sum, const void* const* x, const T* c, int count, const Finish& finish) {
  static_assert(kChain == 4, "one case per length");
  switch (terms) {
    case 1:
      return chain<T, S, 1, kFirst>(sum, x, c, count, finish);
    case 2:
      return chain<T, S, 2, kFirst>(sum, x, c, count, finish);
    case 3:
      return chain<T, S, 3, kFirst>(sum, x, c, count, finish);
    default:
      return chain<T, S, 4, kFirst>(sum, x, c, count, finish);
  }
}

template <class T>
class Loop {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int kBlock = kBlockBytes / sizeof(T);
  static_assert(kBlock % (4 * Lanes<float>::width) == 0,
                "whole registers, and whole calls of the noise generator");

 public:
  Loop(const Params& p, int64_t sample) : p_(p), sample_(sample), program_(build<T>(p, sample)) {
    if (program_.uses_noise) key_ = noise_key(p, program_.step, sample);
    source_[p.inputs + p.rows] = {noise_, kArithmetic};
    block_ = kBlock;
    for (int i = 0; i < p.rows; ++i) {
      stream_[i] = p.stream && !is_an_input(p.output[i]);
      in_place_[i] = may_sum_in_place(i);
      passes_on_[i] =
          may_pass_on(i) && !(i > 0 && passes_on_[i - 1]);  // a row so formed has no pass of its own
    }
    if (is_one_pass()) block_ = kUnbroken;
  }

  // Elements [begin, end) of the sample: whole registers where an innermost run is long enough, the rest
  // gathered.
  void run(int64_t begin, int64_t end) {
    const bool short_runs = p_.size[0] < kShortRun;
    for (int64_t i = begin; i < end;) {
      const int64_t left_in_run = std::min(end - i, p_.size[0] - (p_.dims > 1 ? i % p_.size[0] : i));
      const int64_t head = p_.stream ? std::min(left_in_run, elements_to_alignment(i)) : 0;
      const int64_t whole = left_in_run / L::width * L::width;
      int64_t count = std::min<int64_t>(kBlock, end - i);
      if (!short_runs && head == 0 && whole > 0) {
        count = whole;
        dense_blocks(i, whole);
      } else {
        if (!short_runs) count = head > 0 ? head : left_in_run;
        gathered_block(i, static_cast<int>(count));
      }
      i += count;
    }
    if (p_.stream) stream_fence();
  }

 private:
  static constexpr DType kArithmetic = sizeof(T) == sizeof(double) ? DType::f64 : DType::f32;

  struct Source {
    const void* data;
    DType dtype;
  };

  char* address(const Operand& operand, int64_t element) const {
    int64_t offset = sample_ * operand.sample_stride;
    for_each_run(p_.dims, p_.size, operand.stride, element, 1, [&](int64_t at, int, int) { offset += at; });
    return static_cast<char*>(operand.data) + offset * size_of(part_of(operand.dtype));
  }

  // The arithmetic loops read and write these dtypes where they lie.
  static bool is_direct(DType dtype) { return (dtype == DType::f64) == (kArithmetic == DType::f64); }

  // Row i may be summed up in the output's own memory: that needs no rounding, no store past the caches, and
  // no input that is still to be read there. (An output is one of the inputs or shares nothing with them.)
  bool may_sum_in_place(int i) const {
    const Operand& y = p_.output[i];
    if (!y.data || y.stride[0] != 1 || part_of(y.dtype) != kArithmetic || stream_[i]) return false;
    const int still_read = is_one_pass(i) ? program_.terms[i + 1] : program_.terms[i];
    for (int t = still_read; t < program_.terms[p_.rows]; ++t) {
      const int k = program_.term[t].source;
      if (k < p_.inputs && p_.input[k].data == y.data) return false;
    }
    return true;
  }

  // One chain over memory forms all there is: nothing is kept between blocks, and there need not be any.
  bool is_one_pass() const {
    const int last = p_.rows - 1;
    if (program_.uses_noise || program_.uses_gate || !in_place_[last] || program_.bounded[last]) return false;
    for (int i = 0; i < last; ++i)
      if (!passes_on_[i] || i + 1 < last) return false;
    for (int u = 0; u < program_.used_count; ++u) {
      const Operand& x = p_.input[program_.used[u]];
      if (x.stride[0] != 1 || !is_direct(x.dtype)) return false;
    }
    if (last == 0) return is_one_pass(0);
    for (int t = 0; t < program_.terms[1]; ++t)  // varying or of two storage types, the row has more passes
      if (program_.term[t].varying || storage_of(t) != storage_of(0)) return false;
    return program_.terms[1] <= kChain;
  }

  // One chain forms the row: each element's inputs are read before its sum is written.
  bool is_one_pass(int i) const {
    if (program_.terms[i + 1] - program_.terms[i] > kChain) return false;
    for (int t = program_.terms[i]; t < program_.terms[i + 1]; ++t) {
      const Term<T>& term = program_.term[t];
      if (term.varying || (term.source < p_.inputs && part_of(p_.input[term.source].dtype) != kArithmetic))
        return false;
    }
    return true;
  }

  // Row i is only there for the next one, a difference that is then scaled or added: its last pass forms that
  // row too, and it is never written.
  bool may_pass_on(int i) const {
    if (i + 1 >= p_.rows || p_.output[i].data || program_.bounded[i]) return false;
    const int begin = program_.terms[i], end = program_.terms[i + 1], next_end = program_.terms[i + 2];
    const int others = next_end - end - 1;  // of the next row
    if (begin == end || program_.term[end - 1].varying || others < 0 || others > kPassedTerms) return false;
    for (int t = end; t < program_.terms[p_.rows]; ++t)
      if ((program_.term[t].source == p_.inputs + i) != (t == next_end - 1)) return false;
    for (int t = end; t < next_end; ++t)
      if (program_.term[t].varying) return false;
    for (int t = end; t < next_end - 1; ++t)  // in one storage type
      if (program_.term[t].source >= p_.inputs || storage_of(t) != storage_of(end)) return false;
    return true;
  }

  // In which a term's source will be read: that of memory, or the arithmetic's after gathering.
  DType storage_of(int t) const {
    const Operand& x = p_.input[program_.term[t].source];
    return x.stride[0] == 1 && is_direct(x.dtype) ? part_of(x.dtype) : kArithmetic;
  }

  // Elements before the first stored row is aligned for non-temporal stores; 0 if it is, or never can be.
  int64_t elements_to_alignment(int64_t element) const {
    for (int i = 0; i < p_.rows; ++i) {
      const Operand& out = p_.output[i];
      if (!out.data || out.stride[0] != 1) continue;
      const uintptr_t bytes = size_of(part_of(out.dtype));
      const uintptr_t past = reinterpret_cast<uintptr_t>(address(out, element)) % kCacheLine;
      return past % bytes || past == 0 ? 0 : static_cast<int64_t>((kCacheLine - past) / bytes);
    }
    return 0;
  }

  // `count` elements (whole registers) inside one innermost run.
  void dense_blocks(int64_t element, int64_t count) {
    for (int64_t end = element + count; element < end; element += block_) {
      const int block = static_cast<int>(std::min<int64_t>(block_, end - element));
      for (int u = 0; u < program_.used_count; ++u) {
        const int k = program_.used[u];
        const Operand& x = p_.input[k];
        if (x.stride[0] == 1 && is_direct(x.dtype)) {
          source_[k] = {address(x, element), part_of(x.dtype)};
        } else {
          gather(k, element, block);
        }
      }
      for (int i = 0; i < p_.rows; ++i)
        sum_[i] = in_place_[i] ? reinterpret_cast<T*>(address(p_.output[i], element)) : rows_[i];
      compute(element, block);
      for (int i = 0; i < p_.rows; ++i) {
        const Operand& y = p_.output[i];
        if (!y.data || in_place_[i]) continue;
        if (y.stride[0] == 1 && is_direct(y.dtype)) {
          store(address(y, element), y.dtype, rows_[i], block, stream_[i]);
        } else {
          scatter(y, element, block, rows_[i]);
        }
      }
    }
  }

  // `count` <= kBlock elements, across runs.
  void gathered_block(int64_t element, int count) {
    for (int u = 0; u < program_.used_count; ++u) gather(program_.used[u], element, count);
    for (int i = 0; i < p_.rows; ++i) sum_[i] = rows_[i];
    compute(element, count);
    for (int i = 0; i < p_.rows; ++i)
      if (p_.output[i].data) scatter(p_.output[i], element, count, rows_[i]);
  }

  void gather(int k, int64_t element, int count) {
    const Operand& x = p_.input[k];
    T* block = gathered_[k];
    for_each_run(p_.dims, p_.size, x.stride, element, count, [&](int64_t offset, int first, int run) {
      load_run(x.data, x.dtype, sample_ * x.sample_stride + offset, x.stride[0], run, block + first);
    });
    source_[k] = {block, kArithmetic};
  }

  void scatter(const Operand& y, int64_t element, int count, const T* block) const {
    for_each_run(p_.dims, p_.size, y.stride, element, count, [&](int64_t offset, int first, int run) {
      const int64_t base = sample_ * y.sample_stride + offset;
      for (int j = 0; j < run; ++j) store_as<T>(y.data, y.dtype, base + j * y.stride[0], block[first + j]);
    });
  }

  // piece(offset, first, run) for each run of a walk.
  template <class Piece>
  void walk_runs(const Walk& walk, int64_t element, int count, const Piece& piece) const {
    for_each_run(walk.dims, walk.size, walk.stride, element, count, [&](int64_t offset, int first, int run) {
      piece(sample_ * walk.sample_stride + offset, first, run);
    });
  }

  void load_side(const Side& side, int64_t skip, int64_t element, int count, T* block) const {
    walk_runs(side.walk, element, count, [&](int64_t offset, int first, int run) {
      load_run(side.data, side.dtype, skip + offset, side.walk.stride[0], run, block + first);
    });
  }

  // All rows of one block into sum_. What an input may still be read from is not written before the last row.
  void compute(int64_t element, int count) {
    if (program_.uses_noise) fill_noise(element, count);
    if (program_.uses_gate) fill_gate(element, count);
    for (int i = 0; i < p_.rows; ++i) {
      T* sum = sum_[i];
      source_[p_.inputs + i] = {sum, kArithmetic};
      const int end = program_.terms[i + 1];
      if (program_.terms[i] == end) std::fill_n(sum, count, T(0));
      const bool is_formed = i > 0 && passes_on_[i - 1];  // by the last pass of the row before
      for (int t = is_formed ? end : program_.terms[i]; t < end;) t += add_terms(i, t, end, element, count);
      if (!program_.bounded[i]) continue;
      const V lo = splat<V>(program_.lo[i]), hi = splat<V>(program_.hi[i]);
      for (int e = 0; e < count; e += L::width) L::store(sum + e, clamp(L::load(sum + e), lo, hi));
    }
  }

  // One pass of row i: as many of the terms t, t + 1, ... as have one storage type, up to kChain. Returns how
  // many.
  int add_terms(int i, int t, int end, int64_t element, int count) {
    T* sum = sum_[i];
    const bool first = t == program_.terms[i];
    if (program_.term[t].varying) {
      add_varying(sum, program_.term[t], first, element, count);
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
      with_finish(i, t + terms == end, [&](const auto& finish) {
        first ? chain_of<T, S, true>(terms, sum, x, c, count, finish)
              : chain_of<T, S, false>(terms, sum, x, c, count, finish);
      });
    });
    return terms;
  }

  // Calls body with what becomes of row i's sum.
  template <class Body>
  void with_finish(int i, bool is_last_pass, const Body& body) const {
    if (!is_last_pass || !passes_on_[i]) return body(Keep<T>{sum_[i]});
    const int begin = program_.terms[i + 1], end = program_.terms[i + 2];
    T* out = sum_[i + 1];
    const V c = splat<V>(program_.term[end - 1].c);
    const int others = end - begin - 1;
    if (others == 0) return body(PassOn<T, T, 0>{out, {}, {}, c});
    const auto x = [&](int t) { return source_[program_.term[begin + t].source]; };
    const auto c_x = [&](int t) { return splat<V>(program_.term[begin + t].c); };
    with_storage<T>(x(0).dtype, [&]<class S>(S) {
      const auto at = [&](int t) { return static_cast<const S*>(x(t).data); };
      if (others == 1) return body(PassOn<T, S, 1>{out, {at(0)}, {c_x(0)}, c});
      body(PassOn<T, S, 2>{out, {at(0), at(1)}, {c_x(0), c_x(1)}, c});
    });
  }

  void add_varying(T* sum, const Term<T>& term, bool first, int64_t element, int count) {
    fill_coefficients(term, element, count);
    const Source& x = source_[term.source];
    if (first) std::fill_n(sum, count, empty_sum<T>());
    with_storage<T>(x.dtype, [&]<class S>(S) {
      const S* source = static_cast<const S*>(x.data);
      for (int e = 0; e < count; e += L::width)
        L::store(sum + e,
                 add_varying_term(L::load(sum + e), L::load(coefficients_ + e), L::load(source + e)));
    });
  }

  // The coefficient of a gated or mapped term, element by element.
  void fill_coefficients(const Term<T>& term, int64_t element, int count) {
    if (term.map >= 0)
      load_side(p_.map, program_.step * p_.map_step_stride + term.map * p_.map_stride, element, count, map_);
    const V c = splat<V>(term.c), gate_c = splat<V>(term.gate_c);
    for (int e = 0; e < count; e += L::width) {
      V effective = term.gate_c == T(0) ? c : gated(c, gate_c, L::load(gate_ + e));
      if (term.map >= 0) effective = mul(effective, L::load(map_ + e));
      L::store(coefficients_ + e, effective);
    }
  }

  void fill_gate(int64_t element, int count) {
    if (p_.mask.data) {
      load_side(p_.mask, 0, element, count, gate_);
    } else {
      std::fill_n(gate_, count, T(1));
    }
    if (!p_.channel.dims) return;
    walk_runs(p_.channel, element, count, [&](int64_t channel, int first, int run) {
      for (int j = 0; j < run; ++j, channel += p_.channel.stride[0])
        if (channel < p_.channel_begin || channel >= p_.channel_end) gate_[first + j] = T(0);
    });
  }

  // z of each element of the block. Consecutive indices share Philox blocks; others are computed one by one.
  void fill_noise(int64_t element, int count) {
    float z[kBlock];
    if (p_.index.dims == 1 && p_.index.stride[0] == 1) {
      consecutive_normals(static_cast<uint64_t>(sample_ * p_.index.sample_stride + element), count, z);
    } else {
      scattered_normals(element, count, z);
    }
    std::copy_n(z, count, noise_);
  }

  void consecutive_normals(uint64_t first, int count, float* z) const {
    using F = Lanes<float>;
    constexpr int kSpan = 4 * F::width;  // normals per call: one Philox block per lane
    float spans[kBlock + 2 * kSpan];     // whole calls around the block
    const int lead =
        static_cast<int>(first % kSpan);  // aligned, so that the low word never wraps within a register
    for (int done = 0; done < lead + count; done += kSpan) {
      const uint64_t block = (first - lead + done) / 4;
      const auto low = fastdiff::add(splat<typename F::U>(static_cast<uint32_t>(block)), F::iota());
      typename F::V normal[4];
      normal_block(low, splat<typename F::U>(static_cast<uint32_t>(block >> 32)), key_, normal);
      F::store_interleaved(spans + done, normal);
    }
    std::copy_n(spans + lead, count, z);
  }

  void scattered_normals(int64_t element, int count, float* z) const {
    using F = Lanes<float>;
    uint32_t low[kBlock], high[kBlock];
    walk_runs(p_.index, element, count, [&](int64_t offset, int first, int run) {
      for (int j = 0; j < run; ++j, offset += p_.index.stride[0]) {
        low[first + j] = static_cast<uint32_t>(offset);
        high[first + j] = static_cast<uint32_t>(static_cast<uint64_t>(offset) >> 32);
      }
    });
    for (int e = 0; e < count; e += F::width)
      F::store(z + e, normal_at(F::load_words(low + e), F::load_words(high + e), key_));
  }

  // Storing over an input, the line is in the cache already: only other outputs are worth storing past it.
  bool is_an_input(const Operand& y) const {
    for (int k = 0; k < p_.inputs; ++k)
      if (p_.input[k].data == y.data) return true;
    return false;
  }

  void store(void* out, DType dtype, const T* block, int count, bool stream) const {
    with_storage<T>(dtype, [&]<class S>(S) {
      S* y = static_cast<S*>(out);
      const bool aligned = reinterpret_cast<uintptr_t>(y) % (L::width * sizeof(S)) == 0;
      if (stream && aligned) {
        for (int e = 0; e < count; e += L::width) L::stream(y + e, L::load(block + e));
      } else {
        for (int e = 0; e < count; e += L::width) L::store(y + e, L::load(block + e));
      }
    });
  }

  static constexpr uintptr_t kCacheLine = 64;
  static constexpr int64_t kUnbroken = int64_t{1} << 30;  // counts are ints

  const Params& p_;
  const int64_t sample_;
  const Program<T> program_;
  NoiseKey key_{};
  Source source_[kSources] = {};
  bool in_place_[kMaxRows] = {}, stream_[kMaxRows] = {}, passes_on_[kMaxRows] = {};
  int64_t block_;          // elements that are computed at a time
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
