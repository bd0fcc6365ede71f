// SPDX-License-Identifier: Apache-2.0
// The C functions through which Python asks for and forces the CPU instruction set of this library.
#include <cstring>

#include "core/isa.h"

#define FASTDIFF_EXPORT extern "C" __attribute__((visibility("default")))

FASTDIFF_EXPORT const char* fastdiff_isa_used() {
  return fastdiff::isa::name(fastdiff::isa::used());
}

// 0: done; 1: unknown name; 2: not built into this library; 3: this CPU does not have it
FASTDIFF_EXPORT int fastdiff_isa_request(const char* name) {
  using fastdiff::Isa;
  for (Isa which : fastdiff::kIsas) {
    if (std::strcmp(name, fastdiff::isa::name(which)) != 0) continue;
    if (fastdiff::isa::request(which)) return 0;
    return fastdiff::isa::built(which) ? 3 : 2;
  }
  return 1;
}
