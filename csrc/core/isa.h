// SPDX-License-Identifier: Apache-2.0
// Which instruction sets the CPU kernels were compiled for, and which of them this process uses.
#pragma once

#include <utility>

namespace fastdiff {

// In the order of preference. avx2_vnni and avx512_vnni are avx2 and avx512 with the dot products of four
// int8 (AVX-VNNI and AVX512-VNNI); amx is avx512_vnni with tiles for products of bfloat16 and int8.
enum class Isa : int { baseline, avx2, avx2_vnni, avx512, avx512_vnni, amx };

inline constexpr Isa kIsas[] = {Isa::baseline, Isa::avx2,        Isa::avx2_vnni,
                                Isa::avx512,   Isa::avx512_vnni, Isa::amx};

// A *_cpu.cpp file is compiled for baseline, avx2 and avx512 with -DFASTDIFF_ISA=<enumerator> and defines the
// explicit specialisation of its kernel for that ISA; everything else in it is in an anonymous namespace. A
// *_vnni.cpp file is compiled for avx2_vnni and avx512_vnni, an *_amx.cpp file for amx; its room's header
// says so by kHasVnni and kHasTiles. Other rooms run what they have for AVX2 and AVX-512 there.
#if defined(FASTDIFF_ISA)
inline constexpr Isa kIsa = Isa::FASTDIFF_ISA;
#endif

template <template <Isa> class Kernel>
inline constexpr bool kHasVnni = false;
template <template <Isa> class Kernel>
inline constexpr bool kHasTiles = false;

namespace isa {

bool built(Isa which);
bool supported(Isa which);  // by the CPU that runs this
Isa detected();             // the best that is built and supported
Isa used();                 // detected(), or what request() forced
bool request(Isa which);    // false, and nothing changes, unless built and supported
const char* name(Isa which);

// Calls Kernel<Isa>::run for the ISA in use.
template <template <Isa> class Kernel, class... Args>
void run(Args&&... args) {
  switch (used()) {
#if defined(FASTDIFF_ISA_AMX)
    case Isa::amx:
      if constexpr (kHasTiles<Kernel>) return Kernel<Isa::amx>::run(std::forward<Args>(args)...);
      [[fallthrough]];
#endif
#if defined(FASTDIFF_ISA_AVX512_VNNI)
    case Isa::avx512_vnni:
      if constexpr (kHasVnni<Kernel>) return Kernel<Isa::avx512_vnni>::run(std::forward<Args>(args)...);
      [[fallthrough]];
#endif
#if defined(FASTDIFF_ISA_AVX512)
    case Isa::avx512:
      return Kernel<Isa::avx512>::run(std::forward<Args>(args)...);
#endif
#if defined(FASTDIFF_ISA_AVX2_VNNI)
    case Isa::avx2_vnni:
      if constexpr (kHasVnni<Kernel>) return Kernel<Isa::avx2_vnni>::run(std::forward<Args>(args)...);
      [[fallthrough]];
#endif
#if defined(FASTDIFF_ISA_AVX2)
    case Isa::avx2:
      return Kernel<Isa::avx2>::run(std::forward<Args>(args)...);
#endif
    default:
      return Kernel<Isa::baseline>::run(std::forward<Args>(args)...);
  }
}

}  // namespace isa
}  // namespace fastdiff
