// SPDX-License-Identifier: Apache-2.0
// The front desk of combine_tokens: checks once for all callers and backends, then lays out the launch.
#include <algorithm>

#include "attention/combine_tokens/combine_tokens.h"

namespace fastdiff::combine_tokens {
namespace {

constexpr const char* kOp = "combine_tokens";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

// Every entry of every list, on the CPU.
void check_lists(const Arguments& a) {
  const attention::Numbers offsets = attention::numbers_of(a.offsets),
                           members = attention::numbers_of(a.members);
  const int64_t entries = a.members.sizes[1], lists = a.offsets.sizes[1] - 1;
  // Where they are the same for all samples, once.
  for (int64_t b = 0; b < std::max(a.offsets.sizes[0], a.members.sizes[0]); ++b)
    for (int64_t m = 0; m < lists; ++m) {
      const int64_t first = offsets.of(b, m), last = offsets.of(b, m + 1);
      if (first < 0 || first > last || last > entries)
        refuse("offsets must ascend from 0 to at most ", entries, ", got ", first, " and then ", last,
               " at list ", m);
      for (int64_t e = first; e < last; ++e)
        if (const int64_t token = members.of(b, e); token < 0 || token >= a.x.sizes[1])
          refuse("members must be within 0 and ", a.x.sizes[1] - 1, ", got ", token, " at entry ", e);
    }
}

}  // namespace

void check(const Arguments& a) {
  attention::check_sequences(kOp, "x", a.x, a.x);
  attention::check_numbers(kOp, "offsets", a.offsets, a.x);
  attention::check_numbers(kOp, "members", a.members, a.x);
  if (a.offsets.sizes[1] < 1)
    refuse("offsets must have a number more than there are lists, got ", shape_text(a.offsets));
  if (a.weights) {
    const TensorView& w = *a.weights;
    const int64_t entries = a.members.sizes[1];
    if (w.rank != 2 || (w.sizes[0] != 1 && w.sizes[0] != a.x.sizes[0]) || w.sizes[1] != entries)
      refuse("weights must have shape [", a.x.sizes[0], " or 1, ", entries, "], got ", shape_text(w));
    const TensorView column{w.data, w.dtype, 3, a.x.sizes, a.x.strides, w.device};
    attention::check_sequences(kOp, "weights", column, a.x);  // its dtype and device: the shape is known
  }
  if (a.x.device.type == DeviceType::cpu && a.x.sizes[0] > 0) check_lists(a);
}

Params prepare(const Arguments& a, const TensorView& y) {
  const int64_t sizes[] = {a.x.sizes[0], a.offsets.sizes[1] - 1, a.x.sizes[2]};
  attention::check_output(kOp, "out", y, {nullptr, a.x.dtype, 3, sizes, sizes, a.x.device});
  attention::check_apart(kOp, "out", y, "x", a.x);
  attention::check_apart(kOp, "out", y, "offsets", a.offsets);
  attention::check_apart(kOp, "out", y, "members", a.members);
  attention::check_apart(kOp, "out", y, "weights", a.weights);
  Params p;
  p.samples = sizes[0];
  p.tokens = a.x.sizes[1];
  p.lists = sizes[1];
  p.channels = sizes[2];
  p.entries = a.members.sizes[1];
  p.x = attention::sequences_of(a.x);
  p.y = attention::sequences_of(y);
  p.offsets = attention::numbers_of(a.offsets);
  p.members = attention::numbers_of(a.members);
  if (a.weights) {
    const TensorView& w = *a.weights;
    p.weights = {w.data, w.dtype, w.sizes[0] == 1 ? 0 : w.strides[0], w.strides[1], 0};
  }
  p.wide = a.x.dtype == DType::f64;
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::combine_tokens
