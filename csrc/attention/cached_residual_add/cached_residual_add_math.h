// SPDX-License-Identifier: Apache-2.0
// What a component adds, for lanes of any kind.
#pragma once

#include "attention/cached_residual_add/cached_residual_add.h"
#include "core/lanes.h"

namespace fastdiff::cached_residual_add {
namespace {

template <class V>
FASTDIFF_HD V with_gate(V sum, V gate, V component) {
  return fma_(gate, component, sum);
}
template <class V>
FASTDIFF_HD V without_gate(V sum, V component) {
  return add(sum, component);
}

}  // namespace
}  // namespace fastdiff::cached_residual_add
