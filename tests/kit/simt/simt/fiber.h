// SPDX-License-Identifier: Apache-2.0
// Fibers: one stack per CUDA thread, switched by hand within one OS thread.
#pragma once

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Present when a sanitizer runtime is loaded, null otherwise: one header serves every flavour of the build.
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size)
    __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old)
    __attribute__((weak));
void __asan_poison_memory_region(const volatile void* address, size_t size) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void* address, size_t size) __attribute__((weak));
}

namespace simt {

inline void asan_poison(const void* address, size_t size) {
  if (&__asan_poison_memory_region != nullptr) __asan_poison_memory_region(address, size);
}

inline void asan_unpoison(const void* address, size_t size) {
  if (&__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(address, size);
}

inline size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

inline size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Anonymous memory between two pages that may not be touched.
class GuardedPages {
 public:
  explicit GuardedPages(size_t bytes) : size_(round_up(bytes, page_size())) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* mapped = mmap(nullptr, size_ + 2 * page_size(), PROT_NONE, kFlags, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<unsigned char*>(mapped) + page_size();
    if (mprotect(begin_, size_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  GuardedPages(GuardedPages&& other) noexcept : begin_(other.begin_), size_(other.size_) {
    other.begin_ = nullptr;
  }
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;
  GuardedPages& operator=(GuardedPages&&) = delete;
  ~GuardedPages() {
    if (begin_ != nullptr) munmap(begin_ - page_size(), size_ + 2 * page_size());
  }

  unsigned char* begin() const { return begin_; }
  unsigned char* end() const { return begin_ + size_; }
  size_t size() const { return size_; }

 private:
  unsigned char* begin_ = nullptr;
  size_t size_ = 0;
};

// A suspended flow of control: where its stack pointer was, and what ASan has to know about its stack.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t machine{};
#endif
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;
};

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack we leave and takes up those on the stack we enter. The
// floating-point control words are the same in all fibers and stay. swapcontext would add a system call for
// the signal mask.
__attribute__((naked, noinline)) inline void swap_stacks(void** /*save_rsp*/, void* /*load_rsp*/) {
  __asm__ volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      "ret\n");
}
#endif

inline void machine_switch(Context& from, Context& to) {
#if defined(__x86_64__)
  swap_stacks(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.machine, &to.machine);
#endif
}

// The first thing to call on a stack that has just been entered.
inline void finish_switch(Context& self) {
  if (&__sanitizer_finish_switch_fiber != nullptr)
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
}

// Returns when something switches back to `from`. With `last`, nothing ever will.
inline void switch_context(Context& from, Context& to, bool last = false) {
  if (&__sanitizer_start_switch_fiber != nullptr)
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
  machine_switch(from, to);
  finish_switch(from);
}

// The stack that the operating system gave the calling thread.
inline void describe_own_stack(Context& context) {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
  pthread_attr_getstack(&attributes, &bottom, &context.stack_size);
  pthread_attr_destroy(&attributes);
  context.stack_bottom = bottom;
}

// A stack and the context that runs on it.
class Fiber {
 public:
  explicit Fiber(size_t stack_bytes) : stack_(stack_bytes) {}

  // The next switch to `context` calls `entry`, which must never return. NOTE: what ran here before may have
  // been left in the middle of a function, with ASan's red zones still around its variables.
  void reset(void (*entry)()) {
    asan_unpoison(stack_.begin(), stack_.size());
    context.stack_bottom = stack_.begin();
    context.stack_size = stack_.size();
    context.fake_stack = nullptr;
#if defined(__x86_64__)
    constexpr size_t kSavedRegisters = 6;
    auto* top = reinterpret_cast<uintptr_t*>(stack_.end());
    *--top = 0;  // entry's return address, 8 bytes off a multiple of 16 as the calling convention wants it
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (size_t i = 0; i < kSavedRegisters; ++i) *--top = 0;
    context.stack_pointer = top;
#else
    getcontext(&context.machine);
    context.machine.uc_stack.ss_sp = stack_.begin();
    context.machine.uc_stack.ss_size = stack_.size();
    context.machine.uc_link = nullptr;
    makecontext(&context.machine, entry, 0);
#endif
  }

  Context context;

 private:
  GuardedPages stack_;
};

}  // namespace simt
