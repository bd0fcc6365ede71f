// SPDX-License-Identifier: Apache-2.0
// The machine: runs a grid block by block, and a block's threads as fibers that are resumed in a seeded
// random order.
#pragma once

#include <csignal>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "simt/checks.h"
#include "simt/shared.h"
#include "simt/text.h"
#include "simt/threads.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace simt {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Machine {
 public:
  Random random;
  SharedMemory shared;
  Thread* self = nullptr;  // the running thread, null on the host
  uint3 thread_index{}, block_index{};
  dim3 grid_dim, block_dim;

  void set_seed(uint64_t seed) { seed_ = seed; }
  const Thread& thread(int rank) const { return *block_.threads[rank]; }

  // Runs the whole grid; blocks in random order, too. Throws Error.
  void run(const Launch& launch) {
    static std::mutex one_launch_at_a_time;
    const std::lock_guard lock(one_launch_at_a_time);
    static const bool announced = announce_place_of_crash();
    static_cast<void>(announced);
    launch_ = launch;
    grid_dim = launch.grid;
    block_dim = launch.block;
    random = Random(seed_);
    shared.prepare(launch.dynamic_bytes);
    describe_own_stack(host_);
    make_threads(launch.block.x * launch.block.y * launch.block.z);

    std::vector<uint64_t> order(uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z);
    std::iota(order.begin(), order.end(), uint64_t{0});
    for (uint64_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
    for (uint64_t block : order) run_block(block);
  }

  // All threads of the block meet here. Returns for how many of them `predicate` holds.
  int barrier(bool predicate, const Site& site) {
    Thread& me = *self;
    refuse(barrier_error(block_, me, site), &site);
    me.state = State::at_barrier;
    me.barrier_site = site;
    block_.warp_of(me).at_barrier |= me.lane_bit();
    ++block_.at_barrier;
    votes_ += predicate ? 1 : 0;
    if (block_.at_barrier == block_.size) release_barrier();
    suspend();
    return released_votes_;
  }

  // The lanes in `mask` meet here; `finish(operands, mask)` runs once, when the last one arrives, with the
  // operands of all of them by lane. Call sites may differ only if `any_place`.
  template <class Operand, class Finish>
  void collective(const char* name, unsigned mask, Operand& operand, const Site& site, Finish finish,
                  bool any_place = false) {
    static const char kind = 0;  // its address is unique to <Operand, Finish>
    Thread& me = *self;
    const Collective mine{name, &kind, mask, &operand, site};
    refuse(collective_error(block_, me, mine, any_place), &site);
    me.collective = mine;
    me.state = State::at_collective;
    block_.warp_of(me).at_collective |= me.lane_bit();
    if (all_have_arrived(me, mask)) {
      Operand* operands[kWarpSize] = {};
      for_lanes(mask, [&](int lane) {
        Thread& other = block_.lane_of(me, lane);
        other.strayed = false;
        operands[lane] = static_cast<Operand*>(other.collective.operand);
        make_ready(other);
      });
      block_.warp_of(me).at_collective &= ~mask;
      finish(operands, mask);
    }
    suspend();
  }

  // Lets another thread run.
  void yield() {
    make_ready(*self);
    suspend();
  }

  // The thread's cp.async groups below `end` land now.
  void land_copies(Thread& thread, int end) {
    std::erase_if(thread.copies, [&](const AsyncCopy& copy) {
      if (copy.group >= end) return false;
      std::memcpy(copy.destination, copy.data, copy.bytes);
      if (race_observer != nullptr) race_observer->copy_landed(copy.destination, copy.bytes, copy.code);
      return true;
    });
  }

  void make_mbarrier(const void* address, int arrivals) {
    block_.mbarriers[address] = {false, arrivals, arrivals, 0};
    block_.mbarriers_are_seen = false;
  }
  void show_mbarriers() { block_.mbarriers_are_seen = true; }

  // One arrival and so many announced bytes.
  void arrive(const void* address, int bytes, const Site& site) {
    Mbarrier& barrier = mbarrier_at(address, site);
    if (barrier.missing == 0) fail("mbarrier: more arrivals than its phase has", &site);
    barrier.missing -= 1;
    barrier.bytes += bytes;
    end_phase(barrier);
    yield();
  }

  // Returns when the phase of this parity is over.
  void wait(const void* address, bool odd, const Site& site) {
    Mbarrier& barrier = mbarrier_at(address, site);
    self->strayed = true;
    if (barrier.odd != odd) return yield();
    Thread& me = *self;
    me.mbarrier = &barrier;
    me.mbarrier_parity = odd;
    me.mbarrier_site = site;
    me.state = State::at_mbarrier;
    suspend();
  }

  // The destination gets NaN bytes until the copy lands: now, by the toss of a coin, or when it is waited
  // for.
  void copy_in_bulk(void* to, const void* from, int bytes, const void* address, void* code,
                    const Site& site) {
    Mbarrier& barrier = mbarrier_at(address, site);
    if (!block_.mbarriers_are_seen)
      fail("bulk_copy: mbarrier_init_done has not followed mbarrier_init", &site);
    const auto size = static_cast<size_t>(bytes);
    const auto* const source = static_cast<const unsigned char*>(from);
    block_.bulk_copies.push_back({static_cast<unsigned char*>(to), {source, source + size}, &barrier});
    if (race_observer != nullptr) race_observer->copy_issued(to, size, code);
    std::memset(to, kPoison, size);
    if (race_observer == nullptr && random.coin()) land_bulk_copies();
    yield();
  }

  // Does products of the running thread's warp, whose lanes are all here, in groups below `end`.
  void do_products(Thread* const* lanes, int end) {
    const size_t count = lanes[0]->products.size();
    for (int lane = 1; lane < kWarpSize; ++lane)
      if (lanes[lane]->products.size() != count)
        fail("wgmma: the lanes of a warp have not issued the same products");
    size_t done = 0;
    for (; done < count && lanes[0]->products[done].group < end; ++done) {
      const Product* all[kWarpSize];
      for (int lane = 0; lane < kWarpSize; ++lane) all[lane] = &lanes[lane]->products[done];
      all[0]->run(all);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      std::vector<Product>& products = lanes[lane]->products;
      products.erase(products.begin(), products.begin() + static_cast<std::ptrdiff_t>(done));
    }
  }

  // Ends the launch with an error about the running thread.
  [[noreturn]] void fail(const std::string& what, const Site* site = nullptr) {
    failure_ = "simt: " + what + "\n  " + place() + (site != nullptr ? ", at " + text(*site) : "") + "\n  " +
               recipe();
    abandoned_ = true;
    switch_context(self->fiber.context, host_, true);
    std::abort();  // an abandoned thread is never resumed
  }

  // "kernel f(float*), grid (2,1,1) block (64,1,1), block (1,0,0), thread (5,0,0)"
  std::string place() const { return place_of_block() + ", thread " + text(thread_index); }
  std::string recipe() const {
    return text("repeat with FASTDIFF_SIMT_SEED=%llu", static_cast<unsigned long long>(seed_));
  }

 private:
  void make_threads(unsigned count) {
    block_.size = static_cast<int>(count);
    while (block_.threads.size() < count) {
      block_.threads.push_back(new Thread);
      block_.threads.back()->fiber.reset(&thread_main);
    }
    ready_.resize(count);
  }

  void run_block(uint64_t block) {
    const dim3& grid = launch_.grid;
    block_index = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                   static_cast<unsigned>(block / grid.x / grid.y)};
    shared.poison();
    if (race_observer != nullptr) race_observer->block_begins(block_.size);
    start_threads();
    switch_context(host_, pick_next());
    self = nullptr;
    if (race_observer != nullptr) race_observer->block_ends();
    if (!failure_.empty()) throw Error(std::exchange(failure_, {}));
    if (block_.exited == block_.size) return;
    abandoned_ = true;
    throw Error("simt: " + deadlock_error(block_) + "\n  " + place_of_block() + "\n  " + recipe());
  }

  void start_threads() {
    if (std::exchange(abandoned_, false))
      for (Thread* thread : block_.threads) thread->fiber.reset(&thread_main);
    ready_count_ = votes_ = block_.exited = block_.at_barrier = 0;
    std::fill(std::begin(block_.warps), std::end(block_.warps), Warp{});
    block_.bulk_copies.clear();
    block_.mbarriers.clear();
    block_.mbarriers_are_seen = false;
    const dim3& shape = launch_.block;
    for (int rank = 0; rank < block_.size; ++rank) {
      Thread& thread = *block_.threads[rank];
      const auto r = static_cast<unsigned>(rank);
      thread.rank = rank;
      thread.index = {r % shape.x, r / shape.x % shape.y, r / shape.x / shape.y};
      thread.copies.clear();
      thread.copy_group = 0;
      thread.products.clear();
      thread.product_group = 0;
      thread.products_fenced = thread.strayed = false;
      block_.warp_of(thread).exists |= thread.lane_bit();
      make_ready(thread);
    }
  }

  // What a fiber runs: one thread of one block after the other.
  static void thread_main();

  // Returns the message of an exception, which must not travel up a fiber's stack: nobody is there to catch
  // it.
  std::string run_thread() {
    try {
      launch_.body(launch_.arguments);
      return {};
    } catch (const std::exception& error) {
      return error.what();
    }
  }

  // Returns when the fiber is wanted for a thread of another block.
  void leave() {
    Thread& me = *self;
    land_copies(me, me.copy_group + 1);
    if (!me.products.empty()) fail("this thread exits before wgmma_wait has waited for its products");
    refuse(exit_error(block_, me), nullptr);
    me.state = State::exited;
    block_.warp_of(me).exited |= me.lane_bit();
    ++block_.exited;
    switch_context(me.fiber.context, pick_next());
  }

  // The scheduler: every ready thread is as likely as any other. With none left, the host decides what that
  // means.
  Context& pick_next() {
    if (ready_count_ == 0) land_bulk_copies();
    if (ready_count_ == 0) return host_;
    const uint32_t choice = random.below(static_cast<uint32_t>(ready_count_));
    Thread* next = ready_[choice];
    ready_[choice] = ready_[--ready_count_];
    self = next;
    thread_index = next->index;
    return next->fiber.context;
  }

  void suspend() {
    Context& mine = self->fiber.context;
    Context& next = pick_next();
    if (&next != &mine) switch_context(mine, next);
  }

  void make_ready(Thread& thread) {
    thread.state = State::ready;
    ready_[ready_count_++] = &thread;
  }

  bool all_have_arrived(const Thread& me, unsigned mask) const {
    if ((block_.warp_of(me).at_collective & mask) != mask) return false;
    bool all = true;
    for_lanes(mask, [&](int lane) { all = all && block_.lane_of(me, lane).collective.mask == mask; });
    return all;
  }

  void release_barrier() {
    for (int rank = 0; rank < block_.size; ++rank) {
      make_ready(*block_.threads[rank]);
      block_.threads[rank]->strayed = false;
    }
    for (Warp& warp : block_.warps) warp.at_barrier = 0;
    block_.at_barrier = 0;
    released_votes_ = std::exchange(votes_, 0);
    if (race_observer != nullptr) race_observer->block_synced();
  }

  Mbarrier& mbarrier_at(const void* address, const Site& site) {
    const auto found = block_.mbarriers.find(address);
    if (found == block_.mbarriers.end()) fail("mbarrier: mbarrier_init has made none here", &site);
    return found->second;
  }

  void land_bulk_copies() {
    for (const BulkCopy& copy : std::exchange(block_.bulk_copies, {})) {
      std::memcpy(copy.destination, copy.data.data(), copy.data.size());
      if (race_observer != nullptr) race_observer->bulk_copy_landed(copy.destination, copy.data.size());
      copy.barrier->bytes -= static_cast<int64_t>(copy.data.size());
      end_phase(*copy.barrier);
    }
  }

  void end_phase(Mbarrier& barrier) {
    if (barrier.missing != 0 || barrier.bytes != 0) return;
    if (race_observer != nullptr) race_observer->block_synced();  // it knows no other order between warps
    barrier.odd ^= 1;
    barrier.missing = barrier.arrivals;
    for (int rank = 0; rank < block_.size; ++rank) {
      Thread& thread = *block_.threads[rank];
      if (thread.state == State::at_mbarrier && thread.mbarrier == &barrier &&
          thread.mbarrier_parity != barrier.odd)
        make_ready(thread);
    }
  }

  void refuse(const std::string& error, const Site* site) {
    if (!error.empty()) fail(error, site);
  }

  std::string place_of_block() const {
    void* inside = reinterpret_cast<char*>(launch_.kernel) + 1;
    return "kernel " + function_name(inside) + ", grid " + text(launch_.grid) + " block " +
           text(launch_.block) + ", block " + text(block_index);
  }

  // ASan and UBSan end the process; say where in the grid that was.
  static bool announce_place_of_crash();

  static uint64_t seed_from_environment() {
    const char* value = std::getenv("FASTDIFF_SIMT_SEED");
    return value != nullptr ? std::strtoull(value, nullptr, 0) : 1;
  }

  uint64_t seed_ = seed_from_environment();
  Launch launch_;
  Block block_;
  Context host_;
  std::vector<Thread*> ready_;
  int ready_count_ = 0;
  int votes_ = 0, released_votes_ = 0;
  bool abandoned_ = false;  // some fiber's stack holds frames that never returned
  std::string failure_;
};

inline Machine machine;

inline void Machine::thread_main() {
  finish_switch(machine.self->fiber.context);
  for (;;) {
    if (const std::string thrown = machine.run_thread(); !thrown.empty())
      machine.fail("the kernel threw: " + thrown);
    machine.leave();
  }
}

inline void print_place() {
  if (machine.self == nullptr) return;
  const std::string message =
      "simt: the process ends in " + machine.place() + "\n  " + machine.recipe() + "\n";
  static_cast<void>(!write(STDERR_FILENO, message.data(), message.size()));
}

// NOTE: UBSan's own runtime knows no callback; with UBSAN_OPTIONS=abort_on_error=1 it raises SIGABRT.
inline bool Machine::announce_place_of_crash() {
  if (&__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(&print_place);
  std::signal(SIGABRT, [](int) {
    print_place();
    std::signal(SIGABRT, SIG_DFL);
    std::raise(SIGABRT);
  });
  return true;
}

// Starts a grid; every thread gets its own copy of the arguments, as on a GPU.
template <class... Params, class... Args>
void run_grid(void (*kernel)(Params...), dim3 grid, dim3 block, size_t dynamic_bytes, Args&&... args) {
  auto body = [&] { kernel(static_cast<Params>(args)...); };
  Launch launch{reinterpret_cast<void (*)()>(kernel), grid, block, dynamic_bytes};
  launch.body = [](void* closure) { (*static_cast<decltype(body)*>(closure))(); };
  launch.arguments = &body;
  machine.run(launch);
}

}  // namespace simt

// For a test that has the built module only as a library.
extern "C" __attribute__((visibility("default"), used)) inline void fastdiff_simt_set_seed(
    unsigned long long seed) {
  simt::machine.set_seed(seed);
}
