// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU, all but the products. Who includes this has those, in strips of queries
// (strip.h):
//
//   class Products {
//     static constexpr int kMostRegisters;  // of a strip
//     Products(const Params& p, const Room& room, Taker<T>& take);
//     void leave();     // the thread's part is done
//     int dim() const;  // rows of sums: D, or more
//     // A block of queries; `memory` is as large as that of the sums, and free.
//     void load(const Queries& q, int lanes, T* memory);
//     // A block of keys and values, and what it adds to the strip from query `first` on.
//     void enter(const Queries& q, int column, Plan::Block block);
//     template <int kRegisters>
//     void attend(int first, const Bias<T>& bias, const Running<T>& running, T* sums);
//     void store(const Queries& q, const T* results, int lanes);
//   };
#pragma once

#include <algorithm>
#include <cmath>

#include "attention/block_sparse_attention/block_sparse_attention_math.h"
#include "attention/blocks_cpu.h"
#include "attention/strip.h"

namespace fastdiff::block_sparse_attention {
namespace {

using namespace attention;

// A block of queries of a head, and the blocks of keys that it sees.
struct Queries {
  int64_t b, h, first;
  int count, split;
  int64_t entries_begin, entries_end;
};

// Hands out a thread's memory.
template <class T>
struct Taker {
  T* memory;
  T* operator()(int64_t count) {
    T* const taken = memory;
    memory += count;
    return taken;
  }
};

// One thread's part.
template <class T, class Products>
class Worker {
  using L = Lanes<T>;

 public:
  Worker(const Params& p, T* memory) : Worker(p, Room(p), Taker<T>{memory}) {}

  // Row r of blocks of a head, or a part of it.
  void row(int64_t b, int64_t h, int64_t r, int64_t split) {
    const int64_t first = r * p_.plan.block_q;
    const int queries = static_cast<int>(std::min<int64_t>(p_.plan.block_q, p_.extent.queries - first));
    const int32_t* const row = p_.plan.of(b, h) + r;
    const auto at = [&](int64_t n) {
      return int64_t{row[0]} + begin_of_split(row[1] - row[0], static_cast<int>(n), p_.splits);
    };
    bias_.enter_head(b, h);
    with_registers<T, Products::kMostRegisters>(queries, [&](auto registers) {
      run<registers()>({b, h, first, queries, static_cast<int>(split), at(split), at(split + 1)});
    });
  }

  void leave() { products_.leave(); }

 private:
  Worker(const Params& p, const Room& room, Taker<T> take)
      : p_(p), products_(p, room, take), dim_(products_.dim()), bias_(p.plan, p.bias, take(room.bias)) {
    sums_ = take(room.queries);
    for (T** state : {&highest_, &total_}) *state = take(room.lanes);
    shrink_ = take(kMostLanes);
    given_ = take(room.given);
  }

  template <int kRegisters>
  void run(const Queries& q) {
    constexpr int lanes = kRegisters * L::width;
    const int64_t whole = rounded_up(q.count, lanes);
    products_.load(q, lanes, sums_);
    if (p_.plan.sets > 1) std::fill_n(given_, whole * dim_, T(0));
    int64_t e = q.entries_begin;
    for (int set = 0; set < p_.plan.sets; ++set) {
      std::fill_n(sums_, whole * dim_, T(0));
      std::fill_n(highest_, whole, kLowest<T>);
      std::fill_n(total_, whole, T(0));
      for (; e < q.entries_end && p_.plan.columns[e] < p_.plan.set_blocks[set + 1]; ++e)
        attend<kRegisters>(q, e, set);
      finish<kRegisters>(q, set);
    }
    products_.store(q, p_.plan.sets > 1 ? given_ : sums_, lanes);
  }

  // What a block of keys adds.
  template <int kRegisters>
  void attend(const Queries& q, int64_t entry, int set) {
    constexpr int lanes = kRegisters * L::width;
    const int column = p_.plan.columns[entry];
    const Plan::Block block = p_.plan.keys_of(set, column);
    products_.enter(q, column, block);
    bias_.enter_block(entry, q.first, block.first, block.count);
    for (int first = 0; first < q.count; first += lanes)
      products_.template attend<kRegisters>(first, bias_.of_strip(first, lanes, q.count),
                                            Running<T>{highest_ + first, total_ + first, shrink_},
                                            sums_ + int64_t{first} * dim_);
  }

  // A block of queries with a set of keys.
  template <int kRegisters>
  void finish(const Queries& q, int set) {
    constexpr int w = L::width, lanes = kRegisters * w;
    T* const parts = total_;  // what each query's sums are times
    for (int n = 0; n < q.count; ++n) {
      const T total = total_[n];
      const double lse =
          total == T(0) ? -INFINITY : highest_[n] * kLn2 + std::log(static_cast<double>(total));
      const int64_t query = q.first + n;
      store_as<double>(p_.lse.data, p_.lse.dtype,
                       p_.lse.at(q.b, q.h, query) + (set + q.split) * p_.lse_of_part, lse);
      parts[n] = total == T(0) ? T(0) : T(1) / total;
      if (p_.weights.data != nullptr)
        parts[n] = parts[n] * load_as<T>(p_.weights.data, p_.weights.dtype,
                                         p_.weights.at(q.b, q.h, query) + set * p_.weights_of_set);
    }
    for (int first = 0; first < q.count; first += lanes)
      for (int64_t at = int64_t{first} * dim_; at < int64_t{first + lanes} * dim_; at += lanes)
        for (int n = 0; n < lanes; n += w) {
          const auto part = L::load(parts + first + n), sum = L::load(sums_ + at + n);
          if (p_.plan.sets == 1) {
            L::store(sums_ + at + n, mul(sum, part));
          } else {
            L::store(given_ + at + n, fma_(sum, part, L::load(given_ + at + n)));
          }
        }
  }

  const Params& p_;
  Products products_;
  const int dim_;
  BlockBias<T> bias_;
  T *sums_, *highest_, *total_, *shrink_, *given_;
};

// A block of queries from strips, an element at a time.
template <class T>
void store_strips(const Params& p, const Queries& q, const T* results, int lanes, int dim) {
  for (int n = 0; n < q.count; ++n) {
    const T* const result = results + int64_t{n / lanes} * lanes * dim + n % lanes;
    store_row(p.out, p.out.at(q.b, q.h, q.first + n) + q.split * p.out_of_split, p.extent.head_dim,
              [&](int d) { return result[int64_t{d} * lanes]; });
  }
}

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

template <class T, class Products>
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
    Worker<T, Products> worker(p, memory + part * each);
    for (int64_t item = share.first; item < share.last; ++item)
      place(item, [&](int64_t b, int64_t h, int64_t r) { worker.row(b, h, r, item % p.splits); });
    worker.leave();
  });
  if (p.splits == 1) return;
  const int64_t queries = p.extent.samples * p.extent.heads * p.extent.queries;
  each_part(team, parts, [&](int64_t part) {
    for (int64_t n = queries * part / parts; n < queries * (part + 1) / parts; ++n) merge<T>(whole, p, n);
  });
}

}  // namespace
}  // namespace fastdiff::block_sparse_attention
