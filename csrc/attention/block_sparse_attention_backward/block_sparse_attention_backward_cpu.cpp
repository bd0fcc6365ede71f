// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward on the CPU, compiled once per ISA.
//
// Work: 10 D multiply-adds per visible pair of tokens, 2 D for each of the score, dout . v, dq, dk and dv,
// and one exponential. A thread takes all queries of a head of keys one block after the other, so that each
// sum is formed in one order, and keeps dk and dv of that head in its own memory.
#include <algorithm>
#include <cmath>

#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_math.h"
#include "attention/blocks_cpu.h"
#include "attention/strip.h"

namespace fastdiff::block_sparse_attention_backward {
namespace {

using namespace attention;

// One thread's part.
template <class T>
class Worker {
  using L = Lanes<T>;

 public:
  Worker(const Params& p, T* memory)
      : p_(p), dim_(p.extent.head_dim), room_(p), bias_(p.plan, p.bias, memory) {
    memory += room_.bias;
    const auto take = [&memory](int64_t count) {
      T* const taken = memory;
      memory += count;
      return taken;
    };
    for (T** strips : {&queries_, &dout_, &dq_}) *strips = take(room_.strips);
    for (T** rows : {&query_rows_, &dout_rows_}) *rows = take(room_.rows);
    for (T** numbers : {&lse_, &delta_}) *numbers = take(room_.lanes);
    for (T** block : {&p_block_, &ds_block_}) *block = take(room_.block);
    for (T*& block : converted_) block = take(room_.converted);
    for (T** sums : {&dk_, &dv_}) *sums = take(room_.sums);
    dbias_ = take(room_.bias_sums);
  }

  // A head of keys and values, with all heads of queries that read it.
  void head(int64_t b, int64_t kv) {
    std::fill_n(dk_, room_.sums, T(0));
    std::fill_n(dv_, room_.sums, T(0));
    const int64_t group = p_.extent.heads / p_.extent.kv_heads;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      std::fill_n(dbias_, room_.bias_sums, T(0));
      bias_.enter_head(b, h);
      for (int64_t r = 0; r < p_.plan.rows; ++r) {
        const int64_t first = r * p_.plan.block_q;
        const int queries = static_cast<int>(std::min<int64_t>(p_.plan.block_q, p_.extent.queries - first));
        with_registers<T>(queries, [&](auto registers) { row<registers()>(b, h, kv, r, first, queries); });
      }
      const Scores& sums = p_.dtable.data ? p_.dtable : p_.dbias;
      for (int64_t n = 0; n < Room::dbias_numel(p_); ++n)
        store_as<T>(sums.data, sums.dtype, sums.at(b, h, n), dbias_[n]);
    }
    const T scale = static_cast<T>(p_.scale);
    for (int64_t j = 0; j < p_.extent.keys; ++j) {
      const T *const dk = dk_ + j * room_.wide_dim, *const dv = dv_ + j * room_.wide_dim;
      store_row(p_.dk, p_.dk.at(b, kv, j), dim_, [&](int d) { return dk[d] * scale; });
      store_row(p_.dv, p_.dv.at(b, kv, j), dim_, [&](int d) { return dv[d]; });
    }
  }

 private:
  // Block r of the queries of a head.
  template <int kRegisters>
  void row(int64_t b, int64_t h, int64_t kv, int64_t r, int64_t first, int queries) {
    constexpr int lanes = kRegisters * L::width;
    const int strips = (queries + lanes - 1) / lanes;
    const int64_t across = int64_t{strips} * lanes;
    enter(b, h, first, queries, lanes);
    const int32_t* const entries = p_.plan.of(b, h) + r;
    for (int64_t e = entries[0]; e < entries[1]; ++e) {
      const auto [key, keys] = p_.plan.keys_of(0, p_.plan.columns[e]);
      const T* const k = rows_of(p_.k, p_.k.rows(b, kv, key), keys, dim_, converted_[0]);
      const T* const v = rows_of(p_.v, p_.v.rows(b, kv, key), keys, dim_, converted_[1]);
      bias_.enter_block(e, first, key, keys);
      for (int s = 0; s < strips; ++s)
        strip<kRegisters>(k, v, keys, s, across, bias_.of_strip(s * lanes, lanes, queries));
      T *const dk = dk_ + key * room_.wide_dim, *const dv = dv_ + key * room_.wide_dim;
      add_product(Factor<T>{p_block_, across, 1}, dout_rows_, queries, dv, keys, room_.wide_dim);
      add_product(Factor<T>{ds_block_, across, 1}, query_rows_, queries, dk, keys, room_.wide_dim);
      if (p_.dbias.data)
        for (int j = 0; j < keys; ++j)
          for (int q = 0; q < queries; ++q) dbias_[key + j] = dbias_[key + j] + ds_block_[j * across + q];
      if (p_.dtable.data) bias_.add_to_table(ds_block_, across, queries, dbias_);
    }
    const T scale = static_cast<T>(p_.scale);
    for (int q = 0; q < queries; ++q) {
      const T* const dq = dq_ + int64_t{q / lanes} * lanes * dim_ + q % lanes;
      store_row(p_.dq, p_.dq.at(b, h, first + q), dim_,
                [&](int d) { return dq[int64_t{d} * lanes] * scale; });
    }
  }

  // What a block of queries brings.
  void enter(int64_t b, int64_t h, int64_t first, int queries, int lanes) {
    const T log2_scale = static_cast<T>(p_.scale * kLog2E);
    load_transposed<T>(p_.q, p_.q.rows(b, h, first), queries, dim_, log2_scale, lanes, queries_);
    load_transposed<T>(p_.dout, p_.dout.rows(b, h, first), queries, dim_, T(1), lanes, dout_);
    const int64_t whole = rounded_up(queries, lanes);
    std::fill_n(dq_, whole * dim_, T(0));
    T out[kMaxHeadDim];
    for (int q = 0; q < whole; ++q) {
      lse_[q] = delta_[q] = T(0);
      if (q >= queries) continue;
      T *const query = query_rows_ + q * room_.wide_dim, *const dout = dout_rows_ + q * room_.wide_dim;
      load_padded(p_.q, p_.q.rows(b, h, first).at(q), query);
      load_padded(p_.dout, p_.dout.at(b, h, first + q), dout);
      load_run<T>(p_.out.data, p_.out.dtype, p_.out.at(b, h, first + q), p_.out.element, dim_, out);
      T delta = p_.dlse.data ? -load_as<T>(p_.dlse.data, p_.dlse.dtype, p_.dlse.at(b, h, first + q)) : T(0);
      for (int d = 0; d < dim_; ++d) delta = fma_(dout[d], out[d], delta);
      delta_[q] = delta;
      const T lse = load_as<T>(p_.lse.data, p_.lse.dtype, p_.lse.at(b, h, first + q));
      lse_[q] = at_least(kLowest<T>, lse * static_cast<T>(kLog2E));  // -inf: all scores are, and stay so
    }
  }

  void load_padded(const Heads& t, int64_t at, T* row) const {
    load_run<T>(t.data, t.dtype, at, t.element, dim_, row);
    std::fill(row + dim_, row + room_.wide_dim, T(0));
  }

  // p and ds of strip s with a block of keys, and what they add to dq.
  template <int kRegisters>
  void strip(const T* k, const T* v, int keys, int s, int64_t across, const Bias<T>& bias) {
    using V = typename L::V;
    constexpr int w = L::width, lanes = kRegisters * w;
    const int64_t at = int64_t{s} * lanes * dim_;
    const Block<T> p{p_block_ + s * lanes, across, keys}, ds{ds_block_ + s * lanes, across, keys};
    product<Start::zero, Unit::step, kRegisters>(Factor<T>{k, dim_, 1}, queries_ + at, lanes, dim_, p.data,
                                                 across, keys);
    V ignored[kRegisters];
    for (int n = 0; n < kRegisters; ++n) ignored[n] = splat<V>(T(0));
    if (bias.data || bias.mask) finish_scores<kRegisters, false>(p, bias, ignored);
    exponentials<kRegisters>(p, lse_ + s * lanes, ignored);
    product<Start::zero, Unit::step, kRegisters>(Factor<T>{v, dim_, 1}, dout_ + at, lanes, dim_, ds.data,
                                                 across, keys);
    V delta[kRegisters];
    for (int n = 0; n < kRegisters; ++n) delta[n] = L::load(delta_ + s * lanes + n * w);
    for (int j = 0; j < keys; ++j)
      for (int n = 0; n < kRegisters; ++n) {
        T* const x = ds.data + j * across + n * w;
        L::store(x, mul(L::load(p.data + j * across + n * w), sub(L::load(x), delta[n])));
      }
    product<Start::kept, Unit::row, kRegisters>(Factor<T>{k, 1, dim_}, ds.data, across, keys, dq_ + at, lanes,
                                                dim_);
  }

  const Params& p_;
  const int dim_;
  const Room room_;
  BlockBias<T> bias_;
  T *queries_, *dout_, *dq_;    // [strips][D][lanes]; the queries times scale log2(e)
  T *query_rows_, *dout_rows_;  // [queries][wide_dim]
  T *lse_, *delta_;             // [lanes of the block]; lse in units of log 2
  T *p_block_, *ds_block_;      // [keys][lanes of the block]
  T *converted_[2], *dk_, *dv_, *dbias_;
};

template <class T>
void run_all(const Params& p, void* scratch, const Team& team) {
  const int64_t parts = parts_of(p, team.threads), each = Room(p).numel();
  const int64_t items = p.extent.samples * p.extent.kv_heads, group = p.extent.heads / p.extent.kv_heads;
  each_part(team, parts, [&](int64_t part) {
    const Share share = share_of(items, part, parts, [&](int64_t item) {
      int64_t blocks = 1;
      for (int64_t h = item % p.extent.kv_heads * group; h < (item % p.extent.kv_heads + 1) * group; ++h) {
        const int32_t* const row = p.plan.of(item / p.extent.kv_heads, h);
        blocks += row[p.plan.rows] - row[0];
      }
      return blocks;
    });
    Worker<T> worker(p, static_cast<T*>(scratch) + part * each);
    for (int64_t item = share.first; item < share.last; ++item)
      worker.head(item / p.extent.kv_heads, item % p.extent.kv_heads);
  });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.wide()) {
    run_all<double>(params, scratch, team);
  } else {
    run_all<float>(params, scratch, team);
  }
}

}  // namespace fastdiff::block_sparse_attention_backward
