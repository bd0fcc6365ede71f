// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU, compiled once per ISA.
//
// Work: 4 D multiply-adds per visible pair of tokens, 2 D for the score and 2 D for the sum, and one
// exponential. A block of queries is brought into the cache once, transposed; each block of keys it sees, and
// of values, is read once per strip. Rows of blocks are shared out among threads by the number of blocks they
// see.
#include <algorithm>
#include <cmath>

#include "attention/block_sparse_attention/block_sparse_attention_math.h"
#include "attention/blocks_cpu.h"
#include "attention/strip.h"

namespace fastdiff::block_sparse_attention {
namespace {

using namespace attention;

// One thread's part.
template <class T>
class Worker {
  using L = Lanes<T>;

 public:
  Worker(const Params& p, T* memory) : p_(p), dim_(p.extent.head_dim) {
    const Room room(p);
    const auto take = [&memory](int64_t count) {
      T* const taken = memory;
      memory += count;
      return taken;
    };
    queries_ = take(room.queries);
    sums_ = take(room.queries);
    scores_ = take(room.scores);
    for (T*& block : converted_) block = take(room.keys);
    for (T** state : {&highest_, &total_}) *state = take(room.lanes);
    shrink_ = take(kMostLanes);
    bias_ = take(room.bias);
  }

  // Row r of blocks of a head.
  void row(int64_t b, int64_t h, int64_t r) {
    const int64_t first = r * p_.plan.block_q;
    const int queries = static_cast<int>(std::min<int64_t>(p_.plan.block_q, p_.extent.queries - first));
    with_registers<T>(queries, [&](auto registers) { run<registers()>(b, h, r, first, queries); });
  }

 private:
  template <int kRegisters>
  void run(int64_t b, int64_t h, int64_t r, int64_t first, int queries) {
    constexpr int lanes = kRegisters * L::width;
    const int strips = (queries + lanes - 1) / lanes;
    load_transposed<T>(p_.q, p_.q.rows(b, h, first), queries, dim_, static_cast<T>(p_.scale * kLog2E), lanes,
                       queries_);
    std::fill_n(sums_, int64_t{strips} * lanes * dim_, T(0));
    std::fill_n(highest_, strips * lanes, kLowest<T>);
    std::fill_n(total_, strips * lanes, T(0));
    const int64_t kv = h / (p_.extent.heads / p_.extent.kv_heads);
    const int32_t* const row = p_.plan.of(b, h) + r;
    for (int64_t e = row[0]; e < row[1]; ++e) {
      const int64_t key = int64_t{p_.plan.columns[e]} * p_.plan.block_k;
      const int keys = static_cast<int>(std::min<int64_t>(p_.plan.block_k, p_.extent.keys - key));
      const T* const k = rows_of(p_.k, p_.k.rows(b, kv, key), keys, dim_, converted_[0]);
      const T* const v = rows_of(p_.v, p_.v.rows(b, kv, key), keys, dim_, converted_[1]);
      BlockBias<T> bias(p_.plan, e, p_.bias, p_.bias.at(b, h, first) + key * p_.bias.key, keys, bias_);
      for (int s = 0; s < strips; ++s) {
        T* const sums = sums_ + int64_t{s} * lanes * dim_;
        product<Start::zero, Unit::step, kRegisters>(
            Factor<T>{k, dim_, 1}, queries_ + int64_t{s} * lanes * dim_, lanes, dim_, scores_, lanes, keys);
        softmax_block<kRegisters>(Block<T>{scores_, lanes, keys}, bias.of_strip(s * lanes, lanes, queries),
                                  Running<T>{highest_ + s * lanes, total_ + s * lanes, shrink_});
        product<Start::scaled, Unit::row, kRegisters>(Factor<T>{v, 1, dim_}, scores_, lanes, keys, sums,
                                                      lanes, dim_, shrink_);
      }
    }
    for (int q = 0; q < queries; ++q) store(b, h, first + q, q, lanes);
  }

  void store(int64_t b, int64_t h, int64_t query, int q, int lanes) {
    const T total = total_[q];
    const T* const sums = sums_ + int64_t{q / lanes} * lanes * dim_ + q % lanes;
    const T part = total == T(0) ? T(0) : T(1) / total;
    store_row(p_.out, p_.out.at(b, h, query), dim_, [&](int d) { return sums[int64_t{d} * lanes] * part; });
    const double lse = total == T(0) ? -INFINITY : highest_[q] * kLn2 + std::log(static_cast<double>(total));
    store_as<double>(p_.lse.data, p_.lse.dtype, p_.lse.at(b, h, query), lse);
  }

  const Params& p_;
  const int dim_;
  T *queries_, *sums_, *scores_, *converted_[2], *highest_, *total_, *shrink_, *bias_;
};

template <class T>
void run_all(const Params& p, void* scratch, const Team& team) {
  const int64_t parts = parts_of(p, team.threads), each = Room(p).numel();
  const int64_t items = p.extent.samples * p.extent.heads * p.plan.rows;
  const auto place = [&p](int64_t item, auto&& body) {
    const int64_t head = item / p.plan.rows;
    return body(head / p.extent.heads, head % p.extent.heads, item % p.plan.rows);
  };
  each_part(team, parts, [&](int64_t part) {
    const Share share = share_of(items, part, parts, [&](int64_t item) {
      return place(item, [&p](int64_t b, int64_t h, int64_t r) {
        const int32_t* const row = p.plan.of(b, h) + r;
        return int64_t{1} + row[1] - row[0];
      });
    });
    Worker<T> worker(p, static_cast<T*>(scratch) + part * each);
    for (int64_t item = share.first; item < share.last; ++item)
      place(item, [&worker](int64_t b, int64_t h, int64_t r) { worker.row(b, h, r); });
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

}  // namespace fastdiff::block_sparse_attention
