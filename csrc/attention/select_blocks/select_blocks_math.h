// SPDX-License-Identifier: Apache-2.0
// How scores become integers, and how a threshold among them is found. Sums of integers do not depend on
// their order: the same blocks are chosen for any number of threads, and on CUDA.
#pragma once

#include <type_traits>

#include "attention/select_blocks/select_blocks.h"
#include "attention/softmax.h"

namespace fastdiff::select_blocks {
namespace {

// For scores of arithmetic type T.
template <class T>
using Key = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class K>
inline constexpr K kTopBit = K(1) << (8 * sizeof(K) - 1);
template <class K>
inline constexpr K kNan = ~K(0);

// Keys are ordered as scores are: -0 as +0, and NaN above all.
template <class T>
FASTDIFF_HD Key<T> key_of(T score) {
  using K = Key<T>;
  const K bits = bits_as<K>(score + T(0));  // no -0
  const K key = bits & kTopBit<K> ? ~bits : bits | kTopBit<K>;
  return score == score ? key : kNan<K>;
}
template <class T>
FASTDIFF_HD T score_of(Key<T> key) {
  using K = Key<T>;
  return bits_as<T>(key & kTopBit<K> ? key ^ kTopBit<K> : ~key);
}

// Keys of the rows of a block of threads that are held in shared memory.
inline constexpr int kWarps = 4;
inline constexpr int64_t kMostSharedBytes = 48 * 1024;

// Weights: exp(score - the row's highest), in units of 2^-30.
inline constexpr int kWeightBits = 30;

// A row with this highest key has a softmax.
template <class T>
FASTDIFF_HD bool has_softmax(Key<T> highest) {
  constexpr auto kInfinity = T(__builtin_huge_val());
  return highest < key_of(kInfinity) && highest > key_of(-kInfinity);
}
template <class V>
FASTDIFF_HD V weight_of(V below) {  // score - highest
  const V power = exp2_(mul(below, splat<V>(static_cast<float>(kLog2E))));
  return mul(power, splat<V>(static_cast<float>(1 << kWeightBits)));
}

// The least sum of weights that is the share `mass` of `total`.
FASTDIFF_HD uint64_t goal_of(double mass, uint64_t total) {
  const double share = mass * static_cast<double>(total);
  auto goal = static_cast<uint64_t>(share);
  if (static_cast<double>(goal) < share) ++goal;
  return goal < 1 ? 1 : goal > total ? total : goal;
}

// A t for which measure(t), of all keys that are at least t, is the goal; if there is none, the highest for
// which it is more. It is for 0.
template <class K, class Measure>
FASTDIFF_HD K threshold_of(int bits, uint64_t goal, const Measure& measure) {
  K t = 0;
  for (int bit = bits - 1; bit >= 0; --bit) {
    const K higher = t | K(1) << bit;
    const uint64_t all = measure(higher);
    if (all >= goal) t = higher;
    if (all == goal) break;
  }
  return t;
}

// How many of the keys equal to the threshold are needed besides those above it, which measure `above`.
FASTDIFF_HD uint64_t ties_of(uint64_t goal, uint64_t above, uint64_t each) {
  return (goal - above + each - 1) / each;
}

// What is done with a row, whose keys it has read: highest(), weigh(T highest), which makes keys weights,
// count_from(K) and sum_from(K) of those that are at least a key, and choose(K threshold, uint64_t ties).
template <class T, class Row>
FASTDIFF_HD void choose_by_count(Row& row, uint64_t goal) {
  using K = Key<T>;
  const K t = threshold_of<K>(8 * sizeof(K), goal, [&row](K key) { return row.count_from(key); });
  // NOTE: no key is above NaN's, and the next number is 0.
  row.choose(t, ties_of(goal, t == kNan<K> ? 0 : row.count_from(t + 1), 1));
}
template <class T, class Row>
FASTDIFF_HD void choose_by_mass(Row& row, double mass) {
  using K = Key<T>;
  const K highest = row.highest();
  if (!has_softmax<T>(highest)) return row.choose(kNan<K>, 0);
  row.weigh(score_of<T>(highest));
  const uint64_t goal = goal_of(mass, row.sum_from(0));
  const K t = threshold_of<K>(kWeightBits + 1, goal, [&row](K key) { return row.sum_from(key); });
  row.choose(t, ties_of(goal, row.sum_from(t + 1), t));
}

}  // namespace
}  // namespace fastdiff::select_blocks
