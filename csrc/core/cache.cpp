// SPDX-License-Identifier: Apache-2.0
#include "core/cache.h"

#include <cstdio>
#include <memory>

namespace fastdiff {
namespace {

// "32768K" -> bytes; 0 if the system has no such file. (sysconf counts the caches of cores that a virtual
// machine does not have.)
int64_t size_from_sysfs(const char* path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path, "r"), &std::fclose);
  long long number = 0;
  char unit = 'K';
  if (!file || std::fscanf(file.get(), "%lld%c", &number, &unit) < 1) return 0;
  return number << (unit == 'M' ? 20 : 10);
}

}  // namespace

int64_t last_level_cache_bytes() {
  constexpr int64_t kFallback = int64_t{32} << 20;
  static const int64_t bytes = [] {
    const int64_t found = size_from_sysfs("/sys/devices/system/cpu/cpu0/cache/index3/size");
    return found > 0 ? found : kFallback;
  }();
  return bytes;
}

}  // namespace fastdiff
