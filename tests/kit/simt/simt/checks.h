// SPDX-License-Identifier: Apache-2.0
// What can be wrong about threads that wait for each other. Each function gives the message, empty if all is
// well.
#pragma once

#include <string>

#include "simt/text.h"
#include "simt/threads.h"

namespace simt {

inline constexpr int kListedThreads = 40;  // in the message about a deadlock

inline bool agree(const Collective& a, const Collective& b, bool any_place) {
  return a.mask == b.mask && a.kind == b.kind && (any_place || same_place(a.site, b.site));
}

// A lane that waits for `me` and will wait for ever, or -1. That is so if `me` leaves for good (mine is
// null), or comes to a collective, mine, for which it is to wait for that lane in turn. (If it is not, it may
// come later: lanes of a tile finish their own collective before they join that of the warp.)
inline int lane_stuck_on(const Block& block, const Thread& me, const Collective* mine, bool any_place) {
  for (unsigned waiting = block.warp_of(me).at_collective; waiting != 0; waiting &= waiting - 1) {
    const int lane = __builtin_ctz(waiting);
    const Collective& other = block.lane_of(me, lane).collective;
    const bool waits_for_me = (other.mask & me.lane_bit()) != 0;
    const bool may_meet_later = mine != nullptr && (mine->mask >> lane & 1) == 0;
    if (!waits_for_me || may_meet_later) continue;
    if (mine == nullptr || !agree(other, *mine, any_place)) return lane;
  }
  return -1;
}

// does: what `me` does to strand a lane.
inline std::string error_of_waiting_lanes(const Block& block, const Thread& me, const Collective* mine,
                                          bool any_place, const char* does) {
  const int lane = lane_stuck_on(block, me, mine, any_place);
  if (lane < 0) return {};
  const Collective& other = block.lane_of(me, lane).collective;
  return text("lane %d waits in %s(0x%08x), at ", lane, other.name, other.mask) + text(other.site) +
         text(", for lane %d, which %s", me.lane(), does);
}

// `me` comes to a __syncthreads.
inline std::string barrier_error(const Block& block, const Thread& me, const Site& site) {
  if (block.exited > 0)
    return text(
        "divergent barrier: this thread waits at __syncthreads, %d of the block's %d threads have exited",
        block.exited, block.size);
  if (block.at_barrier > 0) {
    const Thread& other = block.first_in(State::at_barrier);
    if (!same_place(other.barrier_site, site))
      return "divergent barrier: thread " + text(other.index) + " waits at another __syncthreads, at " +
             text(other.barrier_site);
  }
  return error_of_waiting_lanes(block, me, nullptr, false, "has reached __syncthreads");
}

// `me` comes to the end of the kernel.
inline std::string exit_error(const Block& block, const Thread& me) {
  if (block.at_barrier > 0) {
    const Thread& other = block.first_in(State::at_barrier);
    return "divergent barrier: this thread exits while thread " + text(other.index) +
           " waits at __syncthreads, at " + text(other.barrier_site);
  }
  return error_of_waiting_lanes(block, me, nullptr, false, "exits");
}

// `me` comes to a warp collective.
inline std::string collective_error(const Block& block, const Thread& me, const Collective& mine,
                                    bool any_place) {
  const Warp& warp = block.warp_of(me);
  std::string error;
  if ((mine.mask & me.lane_bit()) == 0)
    error = text("the mask does not name the calling lane %d", me.lane());
  else if (const unsigned missing = mine.mask & ~warp.exists)
    error = text("the mask names lanes 0x%08x, which this warp does not have", missing);
  else if (const unsigned gone = mine.mask & warp.exited)
    error = text("the mask names lanes 0x%08x, which have exited", gone);
  else if (const unsigned stuck = mine.mask & warp.at_barrier)
    error = text("the mask names lanes 0x%08x, which wait at __syncthreads, at ", stuck) +
            text(block.lane_of(me, __builtin_ctz(stuck)).barrier_site);
  else
    error = error_of_waiting_lanes(block, me, &mine, any_place, "is here");
  return error.empty() ? error : text("%s(0x%08x): ", mine.name, mine.mask) + error;
}

// Nothing can run any more, but not all threads have exited: more than two of them wait in a ring.
inline std::string deadlock_error(const Block& block) {
  std::string error = "deadlock";
  int listed = 0;
  for (int rank = 0; rank < block.size && listed < kListedThreads; ++rank) {
    const Thread& thread = *block.threads[rank];
    if (thread.state == State::exited) continue;
    error += "\n  thread " + text(thread.index) + " waits in ";
    if (thread.state == State::at_barrier)
      error += "__syncthreads, at " + text(thread.barrier_site);
    else if (thread.state == State::at_mbarrier)
      error += "mbarrier_wait, at " + text(thread.mbarrier_site);
    else
      error += text("%s(0x%08x), at ", thread.collective.name, thread.collective.mask) +
               text(thread.collective.site);
    ++listed;
  }
  return error;
}

}  // namespace simt
