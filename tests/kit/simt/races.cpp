// SPDX-License-Identifier: Apache-2.0
// The race detector: implements the functions that g++ -fsanitize=thread calls before every memory access,
// and looks at those to shared memory. Two accesses to a byte by different threads, at least one of them a
// write and not both atomic, must have a __syncthreads or a __syncwarp of both threads between them; and a
// byte must be written before it is read.
//
// Time is kept as in FastTrack: each thread has a clock, a barrier joins the clocks of those that it
// synchronises. All threads of a block pass __syncthreads together, so that is one number (the phase); within
// a phase only lanes of one warp can synchronise, so each has a clock per lane of its warp. This file itself
// is not instrumented.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "simt/machine.h"

namespace simt {
namespace {

// One access to one byte. A default-constructed one never happened.
struct Access {
  uint32_t block = 0;  // number of the block since the start, from 1
  uint32_t phase = 0;
  uint32_t clock = 0;
  uint16_t thread = 0;
  bool atomic = false;
  void* code = nullptr;  // the instruction after it
};

// The last write to a byte and two reads by different threads since: whatever two other readers conflict
// with, one of these does too, unless __syncwarp came between them.
struct Byte {
  Access write;
  Access read[2];
  bool in_flight = false;  // a copy has been issued and not waited for
};

using Clocks = std::array<uint32_t, kWarpSize>;  // what a lane knows of the lanes of its warp

// The linker may take an instrumented copy of a function template that this file uses, too.
bool inside_hook = false;

class Detector final : public RaceObserver {
 public:
  Detector() { race_observer = this; }

  void block_begins(int threads) override {
    ++block_;
    phase_ = 0;
    clocks_.assign(static_cast<size_t>(threads), Clocks{});
    for (int rank = 0; rank < threads; ++rank) clocks_[rank][rank % kWarpSize] = 1;
    ranges_ = machine.shared.statics();
    ranges_.push_back(machine.shared.dynamic());
    bytes_.resize(ranges_.size());
    for (size_t i = 0; i < ranges_.size(); ++i) bytes_[i].resize(std::max(bytes_[i].size(), ranges_[i].size));
    running_ = true;
  }

  void block_ends() override { running_ = false; }

  void block_synced() override { ++phase_; }

  void warp_synced(int first_thread, unsigned mask) override {
    Clocks joined{};
    for_lanes(mask, [&](int lane) {
      for (int i = 0; i < kWarpSize; ++i) joined[i] = std::max(joined[i], clocks_[first_thread + lane][i]);
    });
    for_lanes(mask, [&](int lane) {
      clocks_[first_thread + lane] = joined;
      ++clocks_[first_thread + lane][lane];
    });
  }

  void atomic_access(const void* address, size_t size, void* code) override {
    const Access now = access(code, true);
    for_bytes(address, size, [&](const Byte& byte) { check_written(byte, now); });
    write(address, size, now);
  }

  // The copy may write at any moment until it has landed, so it counts as a write at the first and at the
  // last one.
  void copy_issued(const void* address, size_t size, void* code) override {
    write(address, size, access(code));
    for_bytes(address, size, [](Byte& byte) { byte.in_flight = true; });
  }
  void copy_landed(const void* address, size_t size, void* code) override {
    for_bytes(address, size, [](Byte& byte) { byte.in_flight = false; });
    write(address, size, access(code));
  }

  // The phase of a barrier ends behind it, which orders it and all that follows.
  void bulk_copy_landed(const void* address, size_t size) override {
    for_bytes(address, size, [](Byte& byte) { byte.in_flight = false; });
  }

  void read(const void* address, size_t size, void* code) {
    for_bytes(address, size, [&](Byte& byte) {
      const Access now = access(code);
      if (byte.in_flight) report("shared memory is read before somebody has waited for the copy to it", now);
      check_written(byte, now);
      if (!ordered(byte.write)) report_race(now, "a read", byte.write, "a write");
      remember_read(byte, now);
    });
  }

  void write(const void* address, size_t size, const Access& now) {
    for_bytes(address, size, [&](Byte& byte) {
      if (byte.in_flight) report("shared memory is written while a copy to it is under way", now);
      if (!ordered(byte.write) && !(now.atomic && byte.write.atomic))
        report_race(now, "a write", byte.write, "a write");
      for (const Access& read : byte.read)
        if (!ordered(read)) report_race(now, "a write", read, "a read");
      byte = {now, {}, false};
    });
  }

  Access access(void* code, bool atomic = false) const {
    if (!running_ || machine.self == nullptr) return {};
    const int rank = machine.self->rank;
    return {block_, phase_, clocks_[rank][rank % kWarpSize], static_cast<uint16_t>(rank), atomic, code};
  }

 private:
  void check_written(const Byte& byte, const Access& now) {
    if (byte.write.block != block_) report("shared memory is read that this block has not written", now);
  }

  // Whether an earlier access is known to the running thread to be over.
  bool ordered(const Access& before) const {
    const int rank = machine.self->rank;
    if (before.block != block_ || before.phase != phase_ || before.thread == rank) return true;
    if (before.thread / kWarpSize != rank / kWarpSize) return false;
    return clocks_[rank][before.thread % kWarpSize] >= before.clock;
  }

  void remember_read(Byte& byte, const Access& now) {
    Access& first = byte.read[0];
    const bool replaces_first = first.block != block_ || first.phase != phase_ || first.thread == now.thread;
    (replaces_first ? first : byte.read[1]) = now;
  }

  // Calls f for each byte of [address, address + size) if that is shared memory and a kernel runs.
  template <class F>
  void for_bytes(const void* address, size_t size, F f) {
    if (!running_ || machine.self == nullptr) return;
    for (size_t i = 0; i < ranges_.size(); ++i) {
      if (!ranges_[i].holds(address, size)) continue;
      const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - ranges_[i].begin);
      for (size_t b = offset; b < offset + size; ++b) f(bytes_[i][b]);
      return;
    }
  }

  [[noreturn]] void report_race(const Access& now, const char* what, const Access& before,
                                const char* what_before) {
    report(
        text("race on shared memory: %s, and %s by thread %s at %s with no barrier between them", what,
             what_before, text(machine.thread(before.thread).index).c_str(), code_place(before.code).c_str()),
        now);
  }

  [[noreturn]] void report(const std::string& what, const Access& now) {
    running_ = inside_hook = false;
    machine.fail(what + "\n  at " + code_place(now.code));
  }

  bool running_ = false;
  uint32_t block_ = 0, phase_ = 0;
  std::vector<Clocks> clocks_;  // by thread
  std::vector<MemoryRange> ranges_;
  std::vector<std::vector<Byte>> bytes_;  // by range
};

Detector detector;

}  // namespace
}  // namespace simt

// What g++ calls. The atomic load is that of the guards of host code's static variables.
namespace simt {
namespace {

void hook_read(const void* p, size_t size, void* code) {
  if (std::exchange(inside_hook, true)) return;
  detector.read(p, size, code);
  inside_hook = false;
}

void hook_write(const void* p, size_t size, void* code) {
  if (std::exchange(inside_hook, true)) return;
  detector.write(p, size, detector.access(code));
  inside_hook = false;
}

}  // namespace
}  // namespace simt

#define SIMT_HOOK(name, arguments, body)                                  \
  extern "C" __attribute__((visibility("default"))) void name arguments { \
    body;                                                                 \
  }
#define SIMT_HOOKS_OF_SIZE(size)                                                                           \
  SIMT_HOOK(__tsan_read##size, (void* p), simt::hook_read(p, size, __builtin_return_address(0)))           \
  SIMT_HOOK(__tsan_write##size, (void* p), simt::hook_write(p, size, __builtin_return_address(0)))         \
  SIMT_HOOK(__tsan_unaligned_read##size, (void* p), simt::hook_read(p, size, __builtin_return_address(0))) \
  SIMT_HOOK(__tsan_unaligned_write##size, (void* p), simt::hook_write(p, size, __builtin_return_address(0)))

SIMT_HOOKS_OF_SIZE(1)
SIMT_HOOKS_OF_SIZE(2)
SIMT_HOOKS_OF_SIZE(4)
SIMT_HOOKS_OF_SIZE(8)
SIMT_HOOKS_OF_SIZE(16)
SIMT_HOOK(__tsan_read_range, (void* p, size_t size), simt::hook_read(p, size, __builtin_return_address(0)))
SIMT_HOOK(__tsan_write_range, (void* p, size_t size), simt::hook_write(p, size, __builtin_return_address(0)))
SIMT_HOOK(__tsan_init, (), )
SIMT_HOOK(__tsan_func_entry, (void*), )
SIMT_HOOK(__tsan_func_exit, (), )
SIMT_HOOK(__tsan_vptr_update, (void**, void*), )
extern "C" __attribute__((visibility("default"))) char __tsan_atomic8_load(const char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
