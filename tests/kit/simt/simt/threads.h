// SPDX-License-Identifier: Apache-2.0
// What the machine keeps: threads, warps, a launch, and the random numbers that order them.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "simt/fiber.h"
#include "simt/text.h"
#include "simt/vector_types.h"

namespace simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxBlockThreads = 1024;
inline constexpr size_t kStackBytes =
    256 * 1024;  // address space: only pages that a thread touches cost memory

// What the race detector wants to know; see races.cpp. Null in the other flavours.
struct RaceObserver {
  virtual void block_begins(int threads) = 0;
  virtual void block_ends() = 0;
  virtual void block_synced() = 0;
  virtual void warp_synced(int first_thread, unsigned mask) = 0;
  // `code` is where in the program the access is made.
  virtual void atomic_access(const void* address, size_t bytes, void* code) = 0;
  virtual void copy_issued(const void* address, size_t bytes, void* code) = 0;
  virtual void copy_landed(const void* address, size_t bytes, void* code) = 0;
  virtual void bulk_copy_landed(const void* address, size_t bytes) = 0;

 protected:
  ~RaceObserver() = default;
};
inline RaceObserver* race_observer = nullptr;

enum class State : uint8_t { ready, at_barrier, at_collective, at_mbarrier, exited };

// A copy to shared memory that cp.async has issued and that has not landed yet.
struct AsyncCopy {
  void* destination;
  size_t bytes;
  unsigned char data[16];
  int group;
  void* code;  // where it was issued
};

// A wgmma that a lane has issued and that has not been done yet; `run` does that of all lanes of its warp.
struct Product {
  void* sums;
  uint32_t a[4];
  uint64_t descriptor;
  bool add;
  int group;
  void (*run)(const Product* const* lanes);
};

// One warp collective as one lane calls it. `kind` differs whenever intrinsic or operand type differ.
struct Collective {
  const char* name;
  const void* kind;
  unsigned mask;
  void* operand;
  Site site;
};

// What a barrier in shared memory counts; its 8 bytes there are never touched.
struct Mbarrier {
  bool odd = false;  // the phase under way
  int arrivals = 0, missing = 0;
  int64_t bytes = 0;  // announced and not yet here
};

// A bulk copy that has been issued and has not landed yet.
struct BulkCopy {
  unsigned char* destination;
  std::vector<unsigned char> data;
  Mbarrier* barrier;
};

struct Thread {
  explicit Thread() : fiber(kStackBytes) {}

  Fiber fiber;
  int rank = 0;  // in the block
  uint3 index{};
  State state = State::exited;
  Site barrier_site;
  Collective collective{};
  std::vector<AsyncCopy> copies;
  int copy_group = 0;  // the group that the next cp.async joins
  std::vector<Product> products;
  int product_group = 0;
  bool products_fenced = false;  // by wgmma_fence since the last wgmma_wait
  bool strayed = false;          // has left a wait by itself, and met no lane since
  Mbarrier* mbarrier = nullptr;  // what it waits at,
  bool mbarrier_parity = false;  // for a phase of which parity,
  Site mbarrier_site;            // and where

  int lane() const { return rank % kWarpSize; }
  unsigned lane_bit() const { return 1u << lane(); }
};

// The lanes of a warp by what they do now.
struct Warp {
  unsigned exists = 0, exited = 0, at_barrier = 0, at_collective = 0;
};

// The block that runs.
struct Block {
  std::vector<Thread*>
      threads;  // by rank; the first `size` are in use, all are kept for the life of the process
  int size = 0;
  int exited = 0, at_barrier = 0;
  std::map<const void*, Mbarrier> mbarriers;  // by address
  bool mbarriers_are_seen = false;            // by bulk copies: mbarrier_init_done
  std::vector<BulkCopy> bulk_copies;
  Warp warps[kMaxBlockThreads / kWarpSize];

  Warp& warp_of(const Thread& thread) { return warps[thread.rank / kWarpSize]; }
  const Warp& warp_of(const Thread& thread) const { return warps[thread.rank / kWarpSize]; }
  Thread& lane_of(const Thread& thread, int lane) const {
    return *threads[thread.rank - thread.lane() + lane];
  }
  const Thread& first_in(State state) const {
    int rank = 0;
    while (threads[rank]->state != state) ++rank;
    return *threads[rank];
  }
};

template <class F>
void for_lanes(unsigned mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

struct Launch {
  void (*kernel)() = nullptr;  // to name it in messages
  dim3 grid, block;
  size_t dynamic_bytes = 0;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
};

// xorshift64*, seeded through splitmix64 so that neighbouring seeds give unrelated orders.
class Random {
 public:
  explicit Random(uint64_t seed = 1) {
    uint64_t z = seed + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    state_ = (z ^ (z >> 31)) | 1;
  }
  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((uint64_t{next()} * bound) >> 32); }
  bool coin() { return (next() & 1) != 0; }

 private:
  uint64_t state_;
};

}  // namespace simt
