// SPDX-License-Identifier: Apache-2.0
// Barriers and warp collectives: __syncthreads*, __syncwarp, shuffles, votes, reductions, matches.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "simt/machine.h"

// ---- block
// ----------------------------------------------------------------------------------------------------------

inline void __syncthreads(simt::Site site = simt::Site::current()) {
  simt::machine.barrier(false, site);
}
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::current()) {
  return simt::machine.barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::current()) {
  return simt::machine.barrier(predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::current()) {
  return simt::machine.barrier(predicate == 0, site) == 0;
}

// Fences order memory between threads. Here memory is always in order: they only give other threads a chance.
inline void __threadfence_block() {
  simt::machine.yield();
}
inline void __threadfence() {
  simt::machine.yield();
}
inline void __threadfence_system() {
  simt::machine.yield();
}
inline void __nanosleep(unsigned) {
  simt::machine.yield();
}

// ---- warp
// -----------------------------------------------------------------------------------------------------------

namespace simt {

struct Nothing {};

// One value goes in, one comes out.
template <class In, class Out>
struct Exchange {
  In in;
  Out out{};
  int source = 0;  // shuffles: the lane to read, or -1 for the own value
};

// The lane that a shuffle reads, in [0, 32), or -1 when it leaves the segment and the lane keeps its own
// value.
struct Segment {
  int lane, first, width;

  Segment(int lane_, int width_) : lane(lane_), first(lane_ / width_ * width_), width(width_) {}
  int direct(int source) const { return first + (source & (width - 1)); }
  int up(unsigned delta) const {
    return lane - first >= static_cast<int>(delta) ? lane - static_cast<int>(delta) : -1;
  }
  int down(unsigned delta) const {
    return static_cast<unsigned>(lane - first) + delta < static_cast<unsigned>(width)
               ? lane + static_cast<int>(delta)
               : -1;
  }
  // May read an earlier segment, but not a later one.
  int flip(int bits) const { return (lane ^ bits) < first + width ? lane ^ bits : -1; }
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int width, int source, const Site& site) {
  static_assert(std::is_arithmetic_v<T> || std::is_trivially_copyable_v<T>);
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0)
    machine.fail(text("%s: width must be a power of two up to 32, got %d", name, width), &site);
  if (source >= 0 && (mask >> source & 1) == 0)
    machine.fail(text("%s(0x%08x): reads lane %d, which the mask does not name", name, mask, source), &site);
  Exchange<T, T> mine{value, value, source};
  machine.collective(name, mask, mine, site, [](Exchange<T, T>** lanes, unsigned all) {
    for_lanes(all, [&](int lane) {
      if (lanes[lane]->source >= 0) lanes[lane]->out = lanes[lanes[lane]->source]->in;
    });
  });
  return mine.out;
}

// Every lane gets the fold of all lanes' values in lane order.
template <class T, class Fold>
T reduce(const char* name, unsigned mask, T value, const Site& site, Fold) {
  Exchange<T, T> mine{value};
  machine.collective(name, mask, mine, site, [](Exchange<T, T>** lanes, unsigned all) {
    const int first = __builtin_ctz(all);
    T total = lanes[first]->in;
    for_lanes(all & (all - 1), [&](int lane) { total = Fold{}(total, lanes[lane]->in); });
    for_lanes(all, [&](int lane) { lanes[lane]->out = total; });
  });
  return mine.out;
}

inline unsigned ballot(const char* name, unsigned mask, bool predicate, const Site& site) {
  const unsigned bit = predicate ? machine.self->lane_bit() : 0u;
  return reduce(name, mask, bit, site, [](unsigned a, unsigned b) { return a | b; });
}

inline int current_lane() {
  return machine.self->lane();
}

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::current()) {
  simt::Nothing nothing;
  simt::machine.collective(
      "__syncwarp", mask, nothing, site,
      [](simt::Nothing**, unsigned all) {
        const simt::Thread& last = *simt::machine.self;
        if (simt::race_observer != nullptr) simt::race_observer->warp_synced(last.rank - last.lane(), all);
      },
      true);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = simt::Site::current()) {
  return simt::shuffle("__shfl_sync", mask, value, width,
                       simt::Segment(simt::current_lane(), width).direct(source), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Site site = simt::Site::current()) {
  return simt::shuffle("__shfl_up_sync", mask, value, width,
                       simt::Segment(simt::current_lane(), width).up(delta), site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Site site = simt::Site::current()) {
  return simt::shuffle("__shfl_down_sync", mask, value, width,
                       simt::Segment(simt::current_lane(), width).down(delta), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, simt::Site site = simt::Site::current()) {
  return simt::shuffle("__shfl_xor_sync", mask, value, width,
                       simt::Segment(simt::current_lane(), width).flip(bits), site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return simt::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return simt::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return simt::ballot("__all_sync", mask, predicate == 0, site) == 0;
}

// The least that the hardware promises: the calling lane is active.
inline unsigned __activemask() {
  return simt::machine.self->lane_bit();
}

// As in CUDA: 32-bit integers only.
#define SIMT_REDUCE(T, name, expression)                                                     \
  inline T name(unsigned mask, T value, simt::Site site = simt::Site::current()) {           \
    return simt::reduce(#name, mask, value, site, [](T a, T b) -> T { return expression; }); \
  }
SIMT_REDUCE(unsigned, __reduce_add_sync, a + b)
SIMT_REDUCE(unsigned, __reduce_min_sync, std::min(a, b))
SIMT_REDUCE(unsigned, __reduce_max_sync, std::max(a, b))
SIMT_REDUCE(unsigned, __reduce_and_sync, a& b)
SIMT_REDUCE(unsigned, __reduce_or_sync, a | b)
SIMT_REDUCE(unsigned, __reduce_xor_sync, a ^ b)
SIMT_REDUCE(int, __reduce_add_sync, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
SIMT_REDUCE(int, __reduce_min_sync, std::min(a, b))
SIMT_REDUCE(int, __reduce_max_sync, std::max(a, b))
#undef SIMT_REDUCE

// The lanes whose value has the same bits as the caller's.
template <class T>
unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::Site::current()) {
  simt::Exchange<T, unsigned> mine{value};
  simt::machine.collective("__match_any_sync", mask, mine, site,
                           [](simt::Exchange<T, unsigned>** lanes, unsigned all) {
                             simt::for_lanes(all, [&](int lane) {
                               simt::for_lanes(all, [&](int other) {
                                 if (std::memcmp(&lanes[lane]->in, &lanes[other]->in, sizeof(T)) == 0)
                                   lanes[lane]->out |= 1u << other;
                               });
                             });
                           });
  return mine.out;
}
