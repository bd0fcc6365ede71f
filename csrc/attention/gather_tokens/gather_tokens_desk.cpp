// SPDX-License-Identifier: Apache-2.0
// The front desk of gather_tokens: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "attention/gather_tokens/gather_tokens.h"
#include "core/cache.h"
#include "core/layout.h"

namespace fastdiff::gather_tokens {
namespace {

constexpr const char* kOp = "gather_tokens";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

void check_fill(const TensorView& fill, const Arguments& a) {
  const int64_t b = a.x.sizes[0], m = a.index.sizes[1], c = a.x.sizes[2];
  const bool is_row = fill.rank == 1 && fill.sizes[0] == c;
  const bool is_rows = fill.rank == 3 && (fill.sizes[0] == 1 || fill.sizes[0] == b) &&
                       (fill.sizes[1] == 1 || fill.sizes[1] == m) && fill.sizes[2] == c;
  if (!is_row && !is_rows)
    refuse("fill must have shape [", c, "] or [", b, " or 1, ", m, " or 1, ", c, "], got ", shape_text(fill));
  const TensorView rows{fill.data, fill.dtype, 3, a.x.sizes, a.x.strides, fill.device};
  attention::check_sequences(kOp, "fill", rows, a.x);  // its dtype and device: the shape is known
}

}  // namespace

void check(const Arguments& a) {
  attention::check_sequences(kOp, "x", a.x, a.x);
  attention::check_numbers(kOp, "index", a.index, a.x);
  const int64_t b = a.x.sizes[0], n = a.x.sizes[1], m = a.index.sizes[1], c = a.x.sizes[2];
  if (a.fill) check_fill(*a.fill, a);
  if (a.residual) {
    attention::check_sequences(kOp, "residual", *a.residual, a.x);
    const int64_t* s = a.residual->sizes;
    if (s[0] != b || s[1] != m || s[2] != c)
      refuse("residual must have shape [", b, ", ", m, ", ", c, "], got ", shape_text(*a.residual));
  }
  if (a.x.device.type != DeviceType::cpu) return;
  const attention::Numbers index = attention::numbers_of(a.index);
  for (int64_t s = 0; s < a.index.sizes[0]; ++s)
    for (int64_t place = 0; place < m; ++place)
      if (const int64_t token = index.of(s, place); token < -1 || token >= n)
        refuse("index must be within -1 and ", n - 1, ", got ", token, " at place ", place);
}

Params prepare(const Arguments& a, const TensorView& y) {
  const int64_t sizes[] = {a.x.sizes[0], a.index.sizes[1], a.x.sizes[2]};
  attention::check_output(kOp, "out", y, {nullptr, a.x.dtype, 3, sizes, sizes, a.x.device});
  attention::check_apart(kOp, "out", y, "x", a.x);
  attention::check_apart(kOp, "out", y, "index", a.index);
  attention::check_apart(kOp, "out", y, "fill", a.fill);
  Params p;
  if (a.residual) {
    // A row of the residual is read before that of y is written.
    if (overlap(y, *a.residual) == Overlap::partial)
      refuse("out must be exactly residual or not share memory with residual");
    p.residual = attention::sequences_of(*a.residual);
  }
  p.samples = sizes[0];
  p.tokens = a.x.sizes[1];
  p.places = sizes[1];
  p.channels = sizes[2];
  p.x = attention::sequences_of(a.x);
  p.y = attention::sequences_of(y);
  p.index = attention::numbers_of(a.index);
  if (a.fill && a.fill->rank == 1) p.fill = {a.fill->data, a.fill->dtype, 0, 0, a.fill->strides[0]};
  if (a.fill && a.fill->rank == 3) p.fill = attention::sequences_of(*a.fill);
  p.wide = a.x.dtype == DType::f64;
  p.stream = p.residual.data != p.y.data && 2 * p.numel() * size_of(y.dtype) > last_level_cache_bytes();
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::gather_tokens
