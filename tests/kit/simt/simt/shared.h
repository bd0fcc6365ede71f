// SPDX-License-Identifier: Apache-2.0
// Shared memory: the dynamic buffer and every __shared__ variable of this module, filled with NaN before each
// block.
#pragma once

#include <dlfcn.h>
#include <elf.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "simt/fiber.h"

// A block runs in one OS thread and blocks run one after the other, so a static variable is shared memory.
// `noinit` makes gcc keep these variables, and no others, in sections named .noinit*, in templates too (where
// gcc 12 ignores the section attribute), and refuse an initialiser, as nvcc does.
#define __shared__ static __attribute__((noinit))

namespace simt {

inline constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type, -1 in the others
inline constexpr size_t kDefaultSharedBytes = 48 * 1024;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;
inline constexpr size_t kDynamicAlignment = 128;

struct MemoryRange {
  unsigned char* begin;
  size_t size;

  bool holds(const void* address, size_t bytes) const {
    const auto* p = static_cast<const unsigned char*>(address);
    return p >= begin && p + bytes <= begin + size;
  }
};

// Writes through ASan's red zones between __shared__ variables, which is why it is not memset: ASan checks
// that.
__attribute__((no_sanitize("address", "thread"), noinline,
               optimize("no-tree-loop-distribute-patterns"))) inline void
fill_with_poison(MemoryRange range) {
  for (size_t i = 0; i < range.size; ++i) range.begin[i] = kPoison;
}

// The .noinit* sections of the executable or library that this code is linked into, found in its own section
// headers.
inline std::vector<MemoryRange> find_static_shared() {
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&find_static_shared), &self) == 0) return {};
  std::ifstream file(self.dli_fname, std::ios::binary);
  const std::string image{std::istreambuf_iterator<char>(file), {}};
  if (image.size() < sizeof(Elf64_Ehdr))
    throw std::runtime_error(std::string("simt: cannot read ") + self.dli_fname);

  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image.data() + header->e_shoff);
  const char* names = image.data() + sections[header->e_shstrndx].sh_offset;
  std::vector<MemoryRange> found;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (std::strncmp(names + sections[i].sh_name, ".noinit", 7) != 0) continue;
    found.push_back({static_cast<unsigned char*>(self.dli_fbase) + sections[i].sh_addr, sections[i].sh_size});
  }
  return found;
}

class SharedMemory {
 public:
  // Gives this launch `bytes` of dynamic shared memory that end at a page that may not be touched.
  void prepare(size_t bytes) {
    asan_unpoison(pages_.begin(), pages_.size());
    dynamic_ = {pages_.end() - round_up(bytes, kDynamicAlignment), bytes};
    asan_poison(pages_.begin(), static_cast<size_t>(dynamic_.begin - pages_.begin()));
    asan_poison(dynamic_.begin + bytes, static_cast<size_t>(pages_.end() - dynamic_.begin) - bytes);
  }

  void poison() const {
    fill_with_poison(dynamic_);
    for (const MemoryRange& range : static_) fill_with_poison(range);
  }

  bool holds(const void* address, size_t bytes) const {
    if (dynamic_.holds(address, bytes)) return true;
    for (const MemoryRange& range : static_)
      if (range.holds(address, bytes)) return true;
    return false;
  }

  const unsigned char* first_page() const { return pages_.begin(); }
  const MemoryRange& dynamic() const { return dynamic_; }
  const std::vector<MemoryRange>& statics() const { return static_; }

 private:
  GuardedPages pages_{kMaxSharedBytes};
  MemoryRange dynamic_{pages_.end(), 0};
  std::vector<MemoryRange> static_ = find_static_shared();
};

}  // namespace simt
