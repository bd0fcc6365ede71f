// SPDX-License-Identifier: Apache-2.0
#include "core/team.h"

namespace fastdiff {

const Team kAlone{1, [](int64_t parts, Team::Part part, const void* body) {
                    for (int64_t n = 0; n < parts; ++n) part(body, n);
                  }};

}  // namespace fastdiff
