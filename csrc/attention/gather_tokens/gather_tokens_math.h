// SPDX-License-Identifier: Apache-2.0
// Where a row of gather_tokens comes from.
#pragma once

#include "attention/gather_tokens/gather_tokens.h"
#include "core/lanes.h"

namespace fastdiff::gather_tokens {
namespace {

struct Source {
  const attention::Sequences& from;  // without data: zeros
  int64_t at;                        // the element where the row begins
};

FASTDIFF_HD Source source_of(const Params& p, int64_t b, int64_t m, int64_t token) {
  if (token >= 0) return {p.x, p.x.at(b, token)};
  return {p.fill, p.fill.at(b, m)};
}

}  // namespace
}  // namespace fastdiff::gather_tokens
