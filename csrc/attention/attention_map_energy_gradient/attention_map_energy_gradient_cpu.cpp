// SPDX-License-Identifier: Apache-2.0
// attention_map_energy_gradient on the CPU, compiled once per ISA.
//
// A thread takes a share of a head's queries one block after the other and keeps the dk of that share: each
// sum is formed in one order, for any number of threads. The shares' sums are added at the end.
#include "attention/attention_map_energy_gradient/attention_map_energy_gradient_math.h"
#include "attention/maps_cpu.h"

namespace fastdiff::attention_map_energy_gradient {
namespace {

using namespace attention;

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int w = L::width;

 public:
  Worker(const Params& p, T* memory) : p_(p), dim_(p.extent.head_dim), room_(p), rows_(p, memory) {
    const auto take = [&memory](int64_t count) {
      T* const taken = memory;
      memory += count;
      return taken;
    };
    for (T** numbers : {&energy_, &mean_}) *numbers = take(room_.lanes);
    ds_ = take(room_.block);
    dq_ = take(room_.strips);
    query_rows_ = take(room_.rows);
  }

  // Of a share of a head's queries; its sums of dk to key_sums [N_kv][wide_dim].
  void item(int64_t item, double* energies, T* key_sums) {
    const int64_t head = item / head_shares(p_);
    rows_.enter_head(head / p_.extent.heads, head % p_.extent.heads);
    std::fill_n(key_sums, p_.extent.keys * room_.wide_dim, T(0));
    each_block<T>(p_, item, [&](auto registers, int64_t n, const QueryBlock& block) {
      rows_.template fill<registers()>(block);
      for (int s = 0; s < block.strips; ++s) sum_rows<registers()>(block, s);
      double sum = 0;
      for (int q = 0; q < block.queries; ++q) sum += static_cast<double>(energy_[q]);
      energies[head * head_blocks(p_) + n] = sum;
      gradients<registers()>(block, key_sums);
    });
  }

 private:
  // The energies of a strip's queries, and their means.
  template <int kRegisters>
  void sum_rows(const QueryBlock& block, int s) {
    V energy[kRegisters], mean[kRegisters];
    for (int n = 0; n < kRegisters; ++n) energy[n] = mean[n] = splat<V>(T(0));
    for (int64_t kb = 0; kb < key_blocks(p_); ++kb) {
      V squares[kRegisters], products[kRegisters];
      for (int n = 0; n < kRegisters; ++n) squares[n] = products[n] = splat<V>(T(0));
      rows_.template each_pair<kRegisters>(block, kb, s, [&](const Pair<V>& pair, int, int n) {
        squares[n] = add_energy(squares[n], pair);
        products[n] = add_mean(products[n], pair);
      });
      for (int n = 0; n < kRegisters; ++n) {
        energy[n] = add(energy[n], squares[n]);
        mean[n] = add(mean[n], products[n]);
      }
    }
    for (int n = 0; n < kRegisters; ++n) {
      L::store(energy_ + s * block.lanes + n * w, energy[n]);
      L::store(mean_ + s * block.lanes + n * w, mean[n]);
    }
  }

  template <int kRegisters>
  void gradients(const QueryBlock& block, T* key_sums) {
    const Heads& q = p_.q[0];
    for (int n = 0; n < block.queries; ++n) {
      T* const row = query_rows_ + n * room_.wide_dim;
      load_run<T>(q.data, q.dtype, q.at(block.b, block.h, block.first + n), q.element, dim_, row);
      std::fill(row + dim_, row + room_.wide_dim, T(0));
    }
    std::fill_n(dq_, block.across * dim_, T(0));
    for (int64_t kb = 0; kb < key_blocks(p_); ++kb) {
      const int keys = rows_.keys_of(kb);
      for (int s = 0; s < block.strips; ++s) {
        V mean[kRegisters];
        for (int n = 0; n < kRegisters; ++n) mean[n] = L::load(mean_ + s * block.lanes + n * w);
        T* const ds = ds_ + s * block.lanes;
        rows_.template each_pair<kRegisters>(block, kb, s, [&](const Pair<V>& pair, int j, int n) {
          L::store(ds + j * block.across + n * w, score_gradient(pair, mean[n]));
        });
        product<Start::kept, Unit::row, kRegisters>(Factor<T>{rows_.keys(kb), 1, dim_}, ds, block.across,
                                                    keys, dq_ + int64_t{s} * block.lanes * dim_, block.lanes,
                                                    dim_);
      }
      add_product(Factor<T>{ds_, block.across, 1}, query_rows_, block.queries,
                  key_sums + kb * kMapKeys * room_.wide_dim, keys, room_.wide_dim);
    }
    const T factor = static_cast<T>(p_.gradient_factor());
    for (int n = 0; n < block.queries; ++n) {
      const T* const dq = dq_ + int64_t{n / block.lanes} * block.lanes * dim_ + n % block.lanes;
      store_row(p_.dq, p_.dq.at(block.b, block.h, block.first + n), dim_,
                [&](int d) { return dq[int64_t{d} * block.lanes] * factor; });
    }
  }

  const Params& p_;
  const int dim_;
  const Room room_;
  MapRows<T> rows_;
  T *energy_, *mean_;  // [across]
  T* ds_;              // [keys of a block][across]
  T* dq_;              // [strips][D][lanes]
  T* query_rows_;      // [queries][wide_dim]
};

// dk of a head, from its shares'.
template <class T>
void store_keys(const Params& p, int64_t head, const T* key_sums) {
  const int64_t shares = head_shares(p), wide_dim = Room(p).wide_dim, each = p.extent.keys * wide_dim;
  const T factor = static_cast<T>(p.gradient_factor());
  for (int64_t j = 0; j < p.extent.keys; ++j) {
    const T* const first = key_sums + head * shares * each + j * wide_dim;
    store_row(p.dk, p.dk.at(head / p.extent.heads, head % p.extent.heads, j), p.extent.head_dim, [&](int d) {
      T sum = first[d];
      for (int64_t share = 1; share < shares; ++share) sum = sum + first[share * each + d];
      return sum * factor;
    });
  }
}

template <class T>
void run_all(const Params& p, void* scratch, const Team& team) {
  auto* const energies = static_cast<double*>(scratch);
  T* const key_sums = reinterpret_cast<T*>(static_cast<char*>(scratch) + energies_bytes(p));
  T* const memory = key_sums + key_sums_numel(p);
  const int64_t items = map_items(p), parts = map_parts(p, team.threads), heads = items / head_shares(p);
  each_part(team, parts, [&](int64_t part) {
    Worker<T> worker(p, memory + part * room_numel(p));
    for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n)
      worker.item(n, energies, key_sums + n * p.extent.keys * Room(p).wide_dim);
  });
  each_part(team, parts, [&](int64_t part) {
    for (int64_t head = heads * part / parts; head < heads * (part + 1) / parts; ++head)
      store_keys(p, head, key_sums);
  });
  store_energies(p, energies);
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

}  // namespace fastdiff::attention_map_energy_gradient
