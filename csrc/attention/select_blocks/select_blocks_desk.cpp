// SPDX-License-Identifier: Apache-2.0
// The front desk of select_blocks: checks once for all callers and backends, then lays out the launch.
#include "attention/select_blocks/select_blocks_math.h"

namespace fastdiff::select_blocks {
namespace {

constexpr const char* kOp = "select_blocks";
constexpr int64_t kMaxColumns = int64_t{1} << 30;

const TensorView& limits_of(const Arguments& a) {
  return a.count ? *a.count : *a.mass;
}

void check_limits(const Arguments& a) {
  const TensorView &t = limits_of(a), &scores = a.scores;
  const char* const argument = a.count ? "count" : "mass";
  if (t.device != scores.device)
    refuse(kOp, argument, " must be on ", device_text(scores.device), " like scores, got ",
           device_text(t.device));
  if (a.count && t.dtype != DType::i64) refuse(kOp, "count must be int64, got ", name(t.dtype));
  if (a.mass && t.dtype != DType::f32 && t.dtype != DType::f64)
    refuse(kOp, "mass must be float32 or float64, got ", name(t.dtype));
  if (t.rank != 2 || (t.sizes[0] != 1 && t.sizes[0] != scores.sizes[0]) ||
      (t.sizes[1] != 1 && t.sizes[1] != scores.sizes[1]))
    refuse(kOp, argument, " must have shape [", scores.sizes[0], " or 1, ", scores.sizes[1], " or 1], got ",
           shape_text(t));
}

// On the CPU.
void check_values(const Arguments& a) {
  const TensorView& t = limits_of(a);
  for (int64_t b = 0; b < t.sizes[0]; ++b)
    for (int64_t h = 0; h < t.sizes[1]; ++h) {
      const int64_t at = b * t.strides[0] + h * t.strides[1];
      if (a.count) {
        if (const int64_t count = static_cast<const int64_t*>(t.data)[at]; count < 1)
          refuse(kOp, "count must be at least 1, got ", count);
      } else if (const double mass = load_as<double>(t.data, t.dtype, at); !(mass > 0 && mass <= 1)) {
        refuse(kOp, "mass must be above 0 and at most 1, got ", mass);
      }
    }
}

}  // namespace

void check(const Arguments& a) {
  const TensorView& scores = a.scores;
  if (!is_real_float(scores.dtype))
    refuse(kOp, "scores must be float32, float16, bfloat16 or float64, got ", name(scores.dtype));
  if (scores.rank != 4) refuse(kOp, "scores must have 4 dimensions [B, H, R, C], got ", shape_text(scores));
  if (scores.sizes[3] > kMaxColumns)
    refuse(kOp, "scores must have at most 2^30 columns, got ", scores.sizes[3]);
  if (a.count.has_value() == a.mass.has_value())
    refuse(kOp, "count or mass must be given, got ", a.count ? "both" : "neither");
  check_limits(a);
  if (scores.device.type == DeviceType::cpu) check_values(a);
}

Params prepare(const Arguments& a, const TensorView& chosen) {
  const TensorView& scores = a.scores;
  attention::check_result(kOp, "out", chosen,
                          {nullptr, DType::b8, 4, scores.sizes, scores.sizes, scores.device});
  const TensorView& limits = limits_of(a);
  attention::check_results(kOp, {{"out", &chosen}},
                           {{"scores", &scores}, {a.count ? "count" : "mass", &limits}});
  Params p;
  p.scores = attention::heads_of(scores);
  p.chosen = attention::heads_of(chosen);
  p.lists = scores.sizes[0] * scores.sizes[1];
  p.heads = scores.sizes[1];
  p.rows = scores.sizes[2];
  p.columns = scores.sizes[3];
  p.limits = {limits.data, limits.dtype, limits.sizes[0] == 1 ? 0 : limits.strides[0],
              limits.sizes[1] == 1 ? 0 : limits.strides[1]};
  return p;
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return threads * p.columns * int64_t{p.wide() ? 8 : 4};
}

int64_t cuda_scratch_bytes(const Params& p) {
  const int64_t row = cpu_scratch_bytes(p, 1);
  return row * kWarps <= kMostSharedBytes ? 0 : p.lists * p.rows * row;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::select_blocks
