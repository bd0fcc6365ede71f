// SPDX-License-Identifier: Apache-2.0
// select_blocks on the CPU, compiled once per ISA. The loops over a row's keys are ones that compilers
// vectorise; a row is a few kilobytes, so that its 32 passes stay in the first-level cache.
#include "attention/select_blocks/select_blocks_math.h"
#include "core/runs.h"

namespace fastdiff::select_blocks {
namespace {

constexpr int64_t kRun = 256;           // scores that are converted at once
constexpr int64_t kSerialNumel = 8192;  // fewer scores are not worth a second thread

template <class T>
class Row {
  using K = Key<T>;

 public:
  Row(const Params& p, K* keys, int64_t list, int64_t r) : p_(p), keys_(keys) {
    const int64_t b = list / p.heads, h = list % p.heads;
    chosen_ = static_cast<uint8_t*>(p.chosen.data) + p.chosen.at(b, h, r);
    const attention::Heads& scores = p.scores;
    alignas(64) T run[kRun];
    for (int64_t first = 0; first < p.columns; first += kRun) {
      const int64_t count = std::min(kRun, p.columns - first);
      load_run(scores.data, scores.dtype, scores.at(b, h, r) + first * scores.element, scores.element, count,
               run);
      for (int64_t c = 0; c < count; ++c) keys[first + c] = key_of(run[c]);
    }
  }

  K highest() const {
    K key = 0;
    for (int64_t c = 0; c < p_.columns; ++c) key = std::max(key, keys_[c]);
    return key;
  }

  // Keys become weights.
  void weigh(T highest) const {
    using L = Lanes<float>;
    alignas(64) float run[kRun];
    for (int64_t first = 0; first < p_.columns; first += kRun) {
      const int64_t count = std::min(kRun, p_.columns - first);
      for (int64_t c = 0; c < count; ++c)
        run[c] = static_cast<float>(score_of<T>(keys_[first + c]) - highest);
      for (int64_t c = count; c % L::width != 0; ++c) run[c] = 0;
      for (int64_t c = 0; c < count; c += L::width) L::store(run + c, weight_of(L::load(run + c)));
      for (int64_t c = 0; c < count; ++c) keys_[first + c] = static_cast<K>(static_cast<int32_t>(run[c]));
    }
  }

  uint64_t count_from(K key) const {
    K count = 0;
    for (int64_t c = 0; c < p_.columns; ++c) count += keys_[c] >= key;
    return count;
  }
  uint64_t sum_from(K key) const {
    uint64_t sum = 0;
    for (int64_t c = 0; c < p_.columns; ++c) sum += keys_[c] >= key ? keys_[c] : 0;
    return sum;
  }

  // All above the threshold, and the first ones equal to it.
  void choose(K threshold, uint64_t ties) const {
    for (int64_t c = 0; c < p_.columns; ++c) {
      const bool tie = keys_[c] == threshold && ties > 0;
      ties -= tie;
      chosen_[c * p_.chosen.element] = keys_[c] > threshold || tie;
    }
  }

 private:
  const Params& p_;
  K* const keys_;
  uint8_t* chosen_;
};

template <class T>
void choose_row(const Params& p, Key<T>* keys, int64_t list, int64_t r) {
  Row<T> row(p, keys, list, r);
  const Limits& limits = p.limits;
  const int64_t limit = list / p.heads * limits.sample + list % p.heads * limits.head;
  if (p.by_mass()) return choose_by_mass<T>(row, load_as<double>(limits.data, limits.dtype, limit));
  const int64_t count = static_cast<const int64_t*>(limits.data)[limit];
  choose_by_count<T>(row, static_cast<uint64_t>(std::min(count, p.columns)));
}

template <class T>
void run_all(const Params& p, char* scratch, const Team& team) {
  const int64_t rows = p.lists * p.rows;
  const int64_t parts = p.numel() < kSerialNumel ? 1 : std::min<int64_t>(team.threads, rows);
  each_part(team, parts, [&](int64_t part) {
    auto* const keys = reinterpret_cast<Key<T>*>(scratch + part * cpu_scratch_bytes(p, 1));
    for (int64_t n = rows * part / parts; n < rows * (part + 1) / parts; ++n)
      choose_row<T>(p, keys, n / p.rows, n % p.rows);
  });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  auto* const memory = static_cast<char*>(scratch);
  params.wide() ? run_all<double>(params, memory, team) : run_all<float>(params, memory, team);
}

}  // namespace fastdiff::select_blocks
