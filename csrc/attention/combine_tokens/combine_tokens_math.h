// SPDX-License-Identifier: Apache-2.0
// A term of combine_tokens.
#pragma once

#include "attention/combine_tokens/combine_tokens.h"
#include "core/lanes.h"

namespace fastdiff::combine_tokens {
namespace {

// Of an entry; 1 where there are no weights.
template <class T>
FASTDIFF_HD T weight_of(const Params& p, int64_t b, int64_t e) {
  return p.weights.data == nullptr ? T(1) : load_as<T>(p.weights.data, p.weights.dtype, p.weights.at(b, e));
}

template <class L, class T>
FASTDIFF_HD L with_term(L sum, T weight, L x) {
  return fma_(splat<L>(weight), x, sum);
}

}  // namespace
}  // namespace fastdiff::combine_tokens
