// SPDX-License-Identifier: Apache-2.0
// A kernel in two variants, the correct one and one with a mistake, and the check of its result.
#pragma once

#include <cstdio>
#include <numeric>
#include <vector>

#include "core/launch.cuh"

struct Case {
  const char* name;
  bool (*run)(bool fixed);  // whether the result is right
};

// 0, 1, 2, ...
inline std::vector<float> ramp(size_t n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}
