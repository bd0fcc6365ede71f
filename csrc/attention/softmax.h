// SPDX-License-Identifier: Apache-2.0
// The arithmetic of attention, for lanes of any kind. Scores are in units of log 2: the scale of the queries
// contains log2(e), and exponentials are powers of two.
#pragma once

#include "core/exp2.h"

namespace fastdiff::attention {
namespace {

// The running maximum of a row that has no key yet: finite, so that it can be subtracted from -inf.
template <class T>
inline constexpr T kLowest = sizeof(T) == 8 ? T(-1.7976931348623157e308) : T(-3.4028234663852886e38);

}  // namespace
}  // namespace fastdiff::attention
