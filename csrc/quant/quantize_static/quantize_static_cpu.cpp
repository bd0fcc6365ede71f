// SPDX-License-Identifier: Apache-2.0
// quantize_static on the CPU, compiled once per ISA.
#include "quant/affine_cpu.h"
#include "quant/norm_row_cpu.h"
#include "quant/quantize_static/quantize_static_math.h"

namespace fastdiff::quantize_static {
namespace {

void run_rows(const Params& p, int64_t begin, int64_t end) {
  quant::RowReader reader(p.rows);
  for (int64_t row = begin; row < end; ++row) {
    const quant::Point<float> point = point_of_step(p.elements.affine, step_of_row(p, row));
    int8_t* const q = static_cast<int8_t*>(p.q.data) + p.rows.at(p.q, row);
    reader.enter(row);
    reader.each_block([&](const float* y, int64_t first, int64_t count) {
      quant::store_quantised(y, count, q + first * p.q.column, p.q.column, [&](auto v) {
        using V = decltype(v);
        return Formula{}(quant::Point<V>{v, v, splat<V>(point.scale), splat<V>(point.inverse),
                                         splat<V>(point.zero), splat<V>(point.low), splat<V>(point.high)});
      });
    });
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, int64_t begin, int64_t end) {
  if (params.by_rows) {
    run_rows(params, begin, end);
  } else {
    quant::run_elements<Formula>(params.elements, begin, end);
  }
}

}  // namespace fastdiff::quantize_static
