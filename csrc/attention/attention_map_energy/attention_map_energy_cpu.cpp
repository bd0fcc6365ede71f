// SPDX-License-Identifier: Apache-2.0
// attention_map_energy on the CPU, compiled once per ISA.
//
// Squares are added up over a block of keys, and blocks over a row, so that errors do not grow with the
// number of keys; rows and blocks of queries in float64, in one order for any number of threads.
#include "attention/attention_map_energy/attention_map_energy_math.h"
#include "attention/maps_cpu.h"

namespace fastdiff::attention_map_energy {
namespace {

using namespace attention;

template <class T>
class Worker {
  using L = Lanes<T>;
  using V = typename L::V;

 public:
  Worker(const Params& p, T* memory) : p_(p), rows_(p, memory), energy_(memory) {}

  void item(int64_t item, double* energies) {
    const int64_t head = item / head_shares(p_);
    rows_.enter_head(head / p_.extent.heads, head % p_.extent.heads);
    each_block<T>(p_, item, [&](auto registers, int64_t n, const QueryBlock& block) {
      rows_.template fill<registers()>(block);
      for (int s = 0; s < block.strips; ++s) strip<registers()>(block, s);
      double sum = 0;
      for (int q = 0; q < block.queries; ++q) sum += static_cast<double>(energy_[q]);
      energies[head * head_blocks(p_) + n] = sum;
    });
  }

 private:
  template <int kRegisters>
  void strip(const QueryBlock& block, int s) {
    V total[kRegisters];
    for (V& v : total) v = splat<V>(T(0));
    for (int64_t kb = 0; kb < key_blocks(p_); ++kb) {
      V sum[kRegisters];
      for (V& v : sum) v = splat<V>(T(0));
      rows_.template each_pair<kRegisters>(
          block, kb, s, [&](const Pair<V>& pair, int, int n) { sum[n] = add_energy(sum[n], pair); });
      for (int n = 0; n < kRegisters; ++n) total[n] = add(total[n], sum[n]);
    }
    for (int n = 0; n < kRegisters; ++n) L::store(energy_ + s * block.lanes + n * L::width, total[n]);
  }

  const Params& p_;
  MapRows<T> rows_;
  T* const energy_;  // of each query of a block
};

template <class T>
void run_all(const Params& p, void* scratch, const Team& team) {
  auto* const energies = static_cast<double*>(scratch);
  T* const memory = reinterpret_cast<T*>(static_cast<char*>(scratch) + energies_bytes(p));
  const int64_t items = map_items(p), parts = map_parts(p, team.threads);
  each_part(team, parts, [&](int64_t part) {
    Worker<T> worker(p, memory + part * room_numel(p));
    for (int64_t n = items * part / parts; n < items * (part + 1) / parts; ++n) worker.item(n, energies);
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

}  // namespace fastdiff::attention_map_energy
