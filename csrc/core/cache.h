// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace fastdiff {

// Bytes of the CPU's last-level cache, or 32 MiB where the system does not say.
int64_t last_level_cache_bytes();

}  // namespace fastdiff
