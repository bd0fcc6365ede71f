// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <atomic>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
    case Isa::amx:
#if defined(FASTDIFF_ISA_AMX)
      return true;
#else
      return false;
#endif
  }
  return false;
}

namespace {

// Linux lends the tiles' registers to processes that ask, once and for all their threads.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace

bool supported(Isa which) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (which == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (which == Isa::avx512) return avx512;
  if (which == Isa::amx)
    return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-bf16") && may_use_tiles();
#endif
  return which == Isa::baseline;
}

namespace {

Isa best() {
  for (Isa which : {Isa::amx, Isa::avx512, Isa::avx2})
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
    case Isa::amx:
      return "amx";
  }
  return "baseline";
}

}  // namespace fastdiff::isa
