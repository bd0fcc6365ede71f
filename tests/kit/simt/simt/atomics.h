// SPDX-License-Identifier: Apache-2.0
// Atomics. Nothing interrupts a fiber, so a plain read-modify-write is atomic; another thread may run before
// it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simt/machine.h"

namespace simt {

// Not instrumented for the race detector, which is told of the access instead.
template <class T, class F>
__attribute__((no_sanitize("thread"), noinline)) T atomic(T* address, F next) {
  constexpr uint32_t kOneInFour = 4;  // lets threads that spin on an atomic make progress
  if (machine.random.below(kOneInFour) == 0) machine.yield();
  if (race_observer != nullptr) race_observer->atomic_access(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = next(old);
  return old;
}

}  // namespace simt

#define SIMT_ATOMIC(T, name, expression)                                  \
  inline T name(T* address, T value) {                                    \
    return simt::atomic(address, [=](T old) -> T { return expression; }); \
  }
#define SIMT_ATOMIC_CAS(T)                                                                   \
  inline T atomicCAS(T* address, T expected, T value) {                                      \
    return simt::atomic(address, [=](T old) -> T { return old == expected ? value : old; }); \
  }

// NOTE: signed sums wrap, as on the GPU.
SIMT_ATOMIC(int, atomicAdd, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
SIMT_ATOMIC(unsigned, atomicAdd, old + value)
SIMT_ATOMIC(unsigned long long, atomicAdd, old + value)
SIMT_ATOMIC(float, atomicAdd, old + value)
SIMT_ATOMIC(double, atomicAdd, old + value)
SIMT_ATOMIC(int, atomicSub, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
SIMT_ATOMIC(unsigned, atomicSub, old - value)
SIMT_ATOMIC(unsigned, atomicInc, old >= value ? 0u : old + 1u)
SIMT_ATOMIC(unsigned, atomicDec, old == 0u || old > value ? value : old - 1u)
SIMT_ATOMIC(int, atomicExch, (static_cast<void>(old), value))
SIMT_ATOMIC(unsigned, atomicExch, (static_cast<void>(old), value))
SIMT_ATOMIC(unsigned long long, atomicExch, (static_cast<void>(old), value))
SIMT_ATOMIC(float, atomicExch, (static_cast<void>(old), value))
#define SIMT_ATOMIC_ORDERED(T)                    \
  SIMT_ATOMIC(T, atomicMin, std::min(old, value)) \
  SIMT_ATOMIC(T, atomicMax, std::max(old, value)) \
  SIMT_ATOMIC(T, atomicAnd, old& value)           \
  SIMT_ATOMIC(T, atomicOr, old | value)           \
  SIMT_ATOMIC(T, atomicXor, old ^ value)          \
  SIMT_ATOMIC_CAS(T)
SIMT_ATOMIC_ORDERED(int)
SIMT_ATOMIC_ORDERED(unsigned)
SIMT_ATOMIC_ORDERED(unsigned long long)
SIMT_ATOMIC(long long, atomicMin, std::min(old, value))
SIMT_ATOMIC(long long, atomicMax, std::max(old, value))
SIMT_ATOMIC_CAS(unsigned short)

#undef SIMT_ATOMIC_ORDERED
#undef SIMT_ATOMIC_CAS
#undef SIMT_ATOMIC
