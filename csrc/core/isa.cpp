// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <atomic>

namespace fastdiff::isa {

bool built(Isa which) {
  switch (which) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
#if defined(FASTDIFF_ISA_AVX2)
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#if defined(FASTDIFF_ISA_AVX512)
      return true;
#else
      return false;
#endif
  }
  return false;
}

bool supported(Isa which) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (which == Isa::avx2) return avx2;
  if (which == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return which == Isa::baseline;
}

namespace {

Isa best() {
  for (Isa which : {Isa::avx512, Isa::avx2})
    if (built(which) && supported(which)) return which;
  return Isa::baseline;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{best()};
  return value;
}

}  // namespace

Isa detected() {
  return best();
}

Isa used() {
  return current().load(std::memory_order_relaxed);
}

bool request(Isa which) {
  if (!built(which) || !supported(which)) return false;
  current().store(which, std::memory_order_relaxed);
  return true;
}

const char* name(Isa which) {
  switch (which) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "baseline";
}

}  // namespace fastdiff::isa
