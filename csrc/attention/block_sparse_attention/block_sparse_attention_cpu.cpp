// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU, compiled once per ISA.
//
// Work: 4 D multiply-adds per visible pair of tokens, 2 D for the score and 2 D for the sum, and one
// exponential. A block of queries is brought into the cache once, transposed; each block of keys it sees, and
// of values, is read once per strip. Rows of blocks are shared out among threads by the number of blocks they
// see; where there are few of them, parts of rows.
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
  Worker(const Params& p, T* memory) : Worker(p, Room(p), Taker{memory}) {}

  // Row r of blocks of a head, or a part of it.
  void row(int64_t b, int64_t h, int64_t r, int64_t split) {
    const int64_t first = r * p_.plan.block_q;
    const int queries = static_cast<int>(std::min<int64_t>(p_.plan.block_q, p_.extent.queries - first));
    bias_.enter_head(b, h);
    with_registers<T>(queries, [&](auto registers) {
      run<registers()>({b, h, first, queries, entries_of(b, h, r, split), static_cast<int>(split)});
    });
  }

 private:
  struct Taker {
    T* memory;
    T* operator()(int64_t count) {
      T* const taken = memory;
      memory += count;
      return taken;
    }
  };

  struct Entries {
    int64_t begin, end;
  };

  struct Queries {
    int64_t b, h, first;
    int count;
    Entries entries;
    int split;
  };

  Worker(const Params& p, const Room& room, Taker take)
      : p_(p), dim_(p.extent.head_dim), bias_(p.plan, p.bias, take(room.bias)) {
    queries_ = take(room.queries);
    sums_ = take(room.queries);
    scores_ = take(room.scores);
    for (T*& block : converted_) block = take(room.keys);
    for (T** state : {&highest_, &total_}) *state = take(room.lanes);
    shrink_ = take(kMostLanes);
    given_ = take(room.given);
  }

  Entries entries_of(int64_t b, int64_t h, int64_t r, int64_t split) const {
    const int32_t* const row = p_.plan.of(b, h) + r;
    const auto at = [&](int64_t n) {
      return int64_t{row[0]} + begin_of_split(row[1] - row[0], static_cast<int>(n), p_.splits);
    };
    return {at(split), at(split + 1)};
  }

  template <int kRegisters>
  void run(const Queries& q) {
    constexpr int lanes = kRegisters * L::width;
    const int64_t whole = rounded_up(q.count, lanes);
    load(q, lanes);
    if (p_.plan.sets > 1) std::fill_n(given_, whole * dim_, T(0));
    int64_t e = q.entries.begin;
    for (int set = 0; set < p_.plan.sets; ++set) {
      std::fill_n(sums_, whole * dim_, T(0));
      std::fill_n(highest_, whole, kLowest<T>);
      std::fill_n(total_, whole, T(0));
      for (; e < q.entries.end && p_.plan.columns[e] < p_.plan.set_blocks[set + 1]; ++e)
        attend<kRegisters>(q, e, p_.plan.keys_of(set, p_.plan.columns[e]));
      for (int n = 0; n < q.count; ++n) finish(q, set, n, lanes);
    }
    const T* const results = p_.plan.sets > 1 ? given_ : sums_;
    for (int n = 0; n < q.count; ++n) {
      const T* const result = results + place(n, lanes);
      store_row(p_.out, p_.out.at(q.b, q.h, q.first + n) + q.split * p_.out_of_split, dim_,
                [&](int d) { return result[int64_t{d} * lanes]; });
    }
  }

  void load(const Queries& q, int lanes) {
    const auto factor = static_cast<T>(p_.scale * kLog2E);
    load_transposed<T>(p_.q, p_.q.rows(q.b, q.h, q.first), q.count, dim_, factor, lanes, queries_);
    if (p_.q_end.data == nullptr) return;
    T* const end = sums_;  // free as yet
    load_transposed<T>(p_.q_end, p_.q_end.rows(q.b, q.h, q.first), q.count, dim_, factor, lanes, end);
    const auto mix = static_cast<T>(p_.mix);
    for (int64_t n = 0; n < rounded_up(q.count, lanes) * dim_; ++n)
      queries_[n] = fma_(mix, end[n] - queries_[n], queries_[n]);
  }

  // What a block of keys adds.
  template <int kRegisters>
  void attend(const Queries& q, int64_t entry, Plan::Block block) {
    constexpr int lanes = kRegisters * L::width;
    const int64_t kv = q.h / (p_.extent.heads / p_.extent.kv_heads);
    const T* const k = rows_of(p_.k, p_.k.rows(q.b, kv, block.first), block.count, dim_, converted_[0]);
    const T* const v = rows_of(p_.v, p_.v.rows(q.b, kv, block.first), block.count, dim_, converted_[1]);
    bias_.enter_block(entry, q.first, block.first, block.count);
    for (int first = 0; first < q.count; first += lanes) {
      T* const sums = sums_ + int64_t{first} * dim_;
      product<Start::zero, Unit::step, kRegisters>(Factor<T>{k, dim_, 1}, queries_ + int64_t{first} * dim_,
                                                   lanes, dim_, scores_, lanes, block.count);
      softmax_block<kRegisters>(Block<T>{scores_, lanes, block.count}, bias_.of_strip(first, lanes, q.count),
                                Running<T>{highest_ + first, total_ + first, shrink_});
      product<Start::scaled, Unit::row, kRegisters>(Factor<T>{v, 1, dim_}, scores_, lanes, block.count, sums,
                                                    lanes, dim_, shrink_);
    }
  }

  // Query n of a block with a set of keys.
  void finish(const Queries& q, int set, int n, int lanes) {
    const T total = total_[n];
    T* const sums = sums_ + place(n, lanes);
    T part = total == T(0) ? T(0) : T(1) / total;
    const double lse = total == T(0) ? -INFINITY : highest_[n] * kLn2 + std::log(static_cast<double>(total));
    const int64_t query = q.first + n;
    store_as<double>(p_.lse.data, p_.lse.dtype, p_.lse.at(q.b, q.h, query) + (set + q.split) * p_.lse_of_part,
                     lse);
    if (p_.weights.data != nullptr)
      part = part * load_as<T>(p_.weights.data, p_.weights.dtype,
                               p_.weights.at(q.b, q.h, query) + set * p_.weights_of_set);
    if (p_.plan.sets == 1) {
      for (int d = 0; d < dim_; ++d) sums[int64_t{d} * lanes] = sums[int64_t{d} * lanes] * part;
    } else {
      T* const given = given_ + place(n, lanes);
      for (int d = 0; d < dim_; ++d)
        given[int64_t{d} * lanes] = fma_(sums[int64_t{d} * lanes], part, given[int64_t{d} * lanes]);
    }
  }

  // Of query n of a block, in strips.
  int64_t place(int n, int lanes) const { return int64_t{n / lanes} * lanes * dim_ + n % lanes; }

  const Params& p_;
  const int dim_;
  BlockBias<T> bias_;
  T *queries_, *sums_, *scores_, *converted_[2], *highest_, *total_, *shrink_, *given_;
};

// Query n of all heads, from its splits.
template <class T>
void merge(const Params& p, const Params& parts, int64_t n) {
  const int64_t q = n % p.extent.queries, list = n / p.extent.queries;
  const int64_t b = list / p.extent.heads, h = list % p.extent.heads;
  const Merge<T> merge(static_cast<const T*>(parts.lse.data) + n, parts.lse_of_part, parts.splits);
  T sums[kMaxHeadDim] = {};
  for (int i = 0; i < parts.splits; ++i) {
    const T weight = merge.weight(i);
    const T* const out =
        static_cast<const T*>(parts.out.data) + i * parts.out_of_split + n * p.extent.head_dim;
    for (int d = 0; d < p.extent.head_dim; ++d) sums[d] = fma_(out[d], weight, sums[d]);
  }
  store_row(p.out, p.out.at(b, h, q), p.extent.head_dim, [&](int d) { return sums[d]; });
  store_as<double>(p.lse.data, p.lse.dtype, p.lse.at(b, h, q), merge.whole());
}

template <class T>
void run_all(const Params& whole, void* scratch, const Team& team) {
  const Params p = with_results_in(whole, scratch);
  T* const memory = static_cast<T*>(scratch) + split_numel(p);
  const int64_t parts = parts_of(p, team.threads), each = Room(p).numel();
  const int64_t items = rows_of_all(p) * p.splits;
  const auto place = [&p](int64_t item, auto&& body) {
    const int64_t row = item / p.splits, head = row / p.plan.rows;
    return body(head / p.extent.heads, head % p.extent.heads, row % p.plan.rows);
  };
  each_part(team, parts, [&](int64_t part) {
    const Share share = share_of(items, part, parts, [&](int64_t item) {
      return place(item, [&p](int64_t b, int64_t h, int64_t r) {
        const int32_t* const row = p.plan.of(b, h) + r;
        return int64_t{1} + (row[1] - row[0]) / p.splits;
      });
    });
    Worker<T> worker(p, memory + part * each);
    for (int64_t item = share.first; item < share.last; ++item)
      place(item, [&](int64_t b, int64_t h, int64_t r) { worker.row(b, h, r, item % p.splits); });
  });
  if (p.splits == 1) return;
  const int64_t queries = p.extent.samples * p.extent.heads * p.extent.queries;
  each_part(team, parts, [&](int64_t part) {
    for (int64_t n = queries * part / parts; n < queries * (part + 1) / parts; ++n) merge<T>(whole, p, n);
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
