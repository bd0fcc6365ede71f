// SPDX-License-Identifier: Apache-2.0
// The threads that share a CPU call of several phases. Kernels know no thread pool: the adaptor lends its
// own.
#pragma once

#include <cstdint>

namespace fastdiff {

struct Team {
  using Part = void (*)(const void* body, int64_t part);

  int threads;
  // Calls part(body, 0) ... part(body, parts - 1), in any order and at the same time, and waits for them.
  void (*run)(int64_t parts, Part part, const void* body);
};

// The caller's thread and no other.
extern const Team kAlone;

// Anonymous because kernels are compiled with different -m flags, see lanes.h.
namespace {

// body(0) ... body(parts - 1). `body` must not throw: it may run on a worker thread.
template <class Body>
void each_part(const Team& team, int64_t parts, const Body& body) {
  team.run(parts, [](const void* b, int64_t part) { (*static_cast<const Body*>(b))(part); }, &body);
}

}  // namespace
}  // namespace fastdiff
