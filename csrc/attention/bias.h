// SPDX-License-Identifier: Apache-2.0
// A bias of scores, an element at a time.
#pragma once

#include "attention/plan.h"
#include "attention/softmax.h"

namespace fastdiff::attention {
namespace {

// From natural units to those of log 2. What is finite stays so: the lowest number of a dtype, the usual
// mask, hides nothing where all of a row has it.
template <class T>
FASTDIFF_HD T in_log2(T natural) {
  const T x = natural * static_cast<T>(kLog2E);
  return x < kLowest<T> && natural >= kLowest<T> ? kLowest<T> : x;
}

template <class T>
FASTDIFF_HD T bias_of(const Scores& bias, int64_t at) {
  return in_log2(load_as<T>(bias.data, bias.dtype, at));
}

}  // namespace
}  // namespace fastdiff::attention
