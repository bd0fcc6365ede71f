// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <algorithm>
#include <atomic>
#include <iterator>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdiff::isa {
namespace {

constexpr Isa kBuilt[] = {
    Isa::baseline,
#if defined(FASTDIFF_ISA_AVX2)
    Isa::avx2,
#endif
#if defined(FASTDIFF_ISA_AVX2_VNNI)
    Isa::avx2_vnni,
#endif
#if defined(FASTDIFF_ISA_AVX512)
    Isa::avx512,
#endif
#if defined(FASTDIFF_ISA_AVX512_VNNI)
    Isa::avx512_vnni,
#endif
#if defined(FASTDIFF_ISA_AMX)
    Isa::amx,
#endif
};

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

bool built(Isa which) {
  return std::find(std::begin(kBuilt), std::end(kBuilt), which) != std::end(kBuilt);
}

bool supported(Isa which) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (which) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
#if defined(FASTDIFF_ISA_AVX2_VNNI)  // the compilers that know these names are those that build for them
    case Isa::avx2_vnni:
      return avx2 && __builtin_cpu_supports("avxvnni");
#endif
#if defined(FASTDIFF_ISA_AVX512_VNNI)
    case Isa::avx512_vnni:
      return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(FASTDIFF_ISA_AMX)
    case Isa::amx:
      return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
             __builtin_cpu_supports("amx-int8") && may_use_tiles();
#endif
    default:
      return false;
  }
#else
  return which == Isa::baseline;
#endif
}

namespace {

Isa best() {
  const auto found = std::find_if(std::rbegin(kBuilt), std::rend(kBuilt), supported);
  return found == std::rend(kBuilt) ? Isa::baseline : *found;
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
  constexpr const char* names[] = {"baseline", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx"};
  return names[static_cast<int>(which)];
}

}  // namespace fastdiff::isa
