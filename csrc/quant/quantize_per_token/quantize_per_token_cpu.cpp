// SPDX-License-Identifier: Apache-2.0
// quantize_per_token on the CPU, compiled once per ISA.
//
// Bytes: a row is read from memory once, for its largest magnitude; the second reading finds it in the
// first-level cache.
#include "quant/norm_row_cpu.h"
#include "quant/quantize_per_token/quantize_per_token_math.h"

namespace fastdiff::quantize_per_token {

template <>
void Cpu<kIsa>::run(const Params& p, int64_t begin, int64_t end) {
  quant::RowReader reader(p.rows);
  for (int64_t row = begin; row < end; ++row) {
    int8_t* const q = static_cast<int8_t*>(p.q.data) + p.rows.at(p.q, row);
    const float scale = quant::quantise_row(reader, row, q, p.q.column);
    static_cast<float*>(p.scale.data)[p.rows.at(p.scale, row)] = scale;
  }
}

}  // namespace fastdiff::quantize_per_token
