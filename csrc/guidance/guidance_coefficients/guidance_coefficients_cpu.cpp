// SPDX-License-Identifier: Apache-2.0
// guidance_coefficients on the CPU, compiled once per ISA. A few hundred numbers: nothing to share out.
#include "guidance/guidance_coefficients/guidance_coefficients_math.h"

namespace fastdiff::guidance_coefficients {
namespace {

template <class T>
void run_as(const Params& p) {
  const int64_t step = p.step ? *p.step : 0;
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    const Weights w = weights(p, step, sample);
    for (int64_t row = 0; row < p.rows; ++row)
      for (int64_t column = 0; column < p.columns; ++column) write_entry<T>(p, step, sample, w, row, column);
    if (p.latch) p.next_latch[sample * p.next_latch_stride] = w.latched;
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params) {
  params.is_double ? run_as<double>(params) : run_as<float>(params);
}

}  // namespace fastdiff::guidance_coefficients
