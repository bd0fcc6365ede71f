// SPDX-License-Identifier: Apache-2.0
// The front desk of guidance_coefficients: checks once for all callers and backends, then lays out the
// launch.
#include <algorithm>

#include "core/layout.h"
#include "guidance/guidance_coefficients/guidance_coefficients.h"

namespace fastdiff::guidance_coefficients {
namespace {

constexpr const char* kOp = "guidance_coefficients";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

constexpr int sums_of(int features) {
  return features * (features + 3) / 2;
}

void check_device(const TensorView& x, const char* argument, const TensorView& first) {
  if (x.device != first.device)
    refuse(argument, " must be on ", device_text(first.device), " like stats, got ", device_text(x.device));
}

void check_double(const TensorView& x, const char* argument) {
  if (x.dtype != DType::f64) refuse(argument, " must be float64, got ", name(x.dtype));
}

void check_sizes(const TensorView& x, const char* argument, std::span<const int64_t> sizes) {
  if (!std::equal(x.sizes, x.sizes + x.rank, sizes.begin(), sizes.end()))
    refuse(argument, " must have shape ", list_text(sizes), ", got ", shape_text(x));
}

bool is_prices(const Arguments& a) {
  return a.method == static_cast<int64_t>(Method::black_scholes);
}

// Features that the method reads, at least and at most.
void check_stats(const Arguments& a) {
  const TensorView& stats = a.stats;
  check_double(stats, "stats");
  if (stats.rank != 2) refuse("stats must have shape [B, sums], got ", shape_text(stats));
  if (is_prices(a)) {
    if (stats.sizes[1] < 1 || stats.sizes[1] > kMaxTargets)
      refuse("stats must have 1 to ", kMaxTargets, " candidates, got ", shape_text(stats));
    return;
  }
  const auto method = static_cast<Method>(a.method);
  const bool needs_third = method == Method::norm_balanced || method == Method::perpendicular;
  for (int features = needs_third ? 3 : 2; features <= kMaxFeatures; ++features)
    if (stats.sizes[1] == sums_of(features)) return;
  refuse("stats must have ", needs_third ? "" : "5, ",
         "9 or 14 sums per sample (fastdiff.guidance_stats), got ", shape_text(stats));
}

int64_t targets_of(const Arguments& a) {
  const int64_t sums = a.stats.sizes[1];
  if (is_prices(a)) return sums;
  for (int features = 2; features < kMaxFeatures; ++features)
    if (sums == sums_of(features)) return features;
  return kMaxFeatures;
}

void check_step(const Arguments& a) {
  const TensorView& step = *a.step;
  check_device(step, "step", a.stats);
  if (step.dtype != DType::i64 || step.numel() != 1)
    refuse("step must be an int64 tensor of one element, got ", name(step.dtype), " of shape ",
           shape_text(step));
  // A step on the device is checked there.
  if (step.device.type != DeviceType::cpu) return;
  const int64_t index = *static_cast<const int64_t*>(step.data), steps = a.table.sizes[0];
  if (index < 0 || index >= steps) refuse("step must be in 0..", steps - 1, ", got ", index);
}

void check_tables(const Arguments& a) {
  const int lead = a.step ? 1 : 0;
  const TensorView &table = a.table, &parameters = a.parameters;
  check_device(parameters, "parameters", a.stats);
  check_device(table, "table", a.stats);
  check_double(parameters, "parameters");
  if (table.dtype != DType::f32 && table.dtype != DType::f64)
    refuse("table must be float32 or float64, got ", name(table.dtype));
  if (table.rank != 2 + lead)
    refuse("table must have shape ", lead ? "[S, M, C] (with step)" : "[M, C]", ", got ", shape_text(table));
  const int64_t sizes[2] = {table.sizes[0], kParameters};
  check_sizes(parameters, "parameters", {sizes + 1 - lead, static_cast<size_t>(1 + lead)});
}

void check_targets(const Arguments& a) {
  const int64_t columns = a.table.size(-1), count = targets_of(a);
  if (static_cast<int64_t>(a.targets.size()) != count)
    refuse("targets must be ", count, " columns, one per ", is_prices(a) ? "candidate" : "feature of stats",
           ", got ", a.targets.size());
  for (size_t n = 0; n < a.targets.size(); ++n)
    if (a.targets[n] < 0 || a.targets[n] >= columns)
      refuse(Argument("targets", n), " must be in 0..", columns - 1, ", got ", a.targets[n]);
}

void check_latch(const Arguments& a) {
  check_device(*a.latch, "latch", a.stats);
  if (is_prices(a)) refuse("latch must be none with black_scholes, got a tensor");
  if (a.latch->dtype != DType::u8) refuse("latch must be uint8, got ", name(a.latch->dtype));
  check_sizes(*a.latch, "latch", {a.stats.sizes, 1});
}

void check_result(const Arguments& a, const TensorView& result) {
  if (result.dtype != a.table.dtype)
    refuse("out[0] must be ", name(a.table.dtype), " like table, got ", name(result.dtype));
  const int64_t sizes[3] = {a.stats.sizes[0], a.table.size(-2), a.table.size(-1)};
  check_sizes(result, "out[0]", sizes);
  check_device(result, "out[0]", a.stats);
  if (!elements_are_distinct(result)) refuse("out[0] must not have elements that share memory (expanded?)");
  const std::pair<const TensorView*, const char*> inputs[] = {{&a.stats, "stats"},
                                                              {&a.parameters, "parameters"},
                                                              {&a.table, "table"},
                                                              {a.step, "step"},
                                                              {a.latch, "latch"}};
  for (const auto& [x, argument] : inputs)
    if (x && overlap(result, *x) != Overlap::none) refuse("out[0] must not share memory with ", argument);
}

void check_next_latch(const Arguments& a, const TensorView& result, const TensorView& next) {
  if (next.dtype != DType::u8) refuse("out[1] must be uint8, got ", name(next.dtype));
  check_sizes(next, "out[1]", {a.stats.sizes, 1});
  check_device(next, "out[1]", a.stats);
  if (!elements_are_distinct(next)) refuse("out[1] must not have elements that share memory (expanded?)");
  if (overlap(next, *a.latch) == Overlap::partial)
    refuse("out[1] must be exactly latch or not share memory with it, got a partial overlap");
  if (overlap(next, result) != Overlap::none) refuse("out[1] must not share memory with out[0]");
  for (const TensorView* x : {&a.stats, &a.parameters, &a.table})
    if (overlap(next, *x) != Overlap::none) refuse("out[1] must not share memory with an input but latch");
}

}  // namespace

void check(const Arguments& a) {
  if (a.method < 0 || a.method >= kMethods) refuse("method must be in 0..", kMethods - 1, ", got ", a.method);
  check_stats(a);
  check_tables(a);
  if (a.step) check_step(a);
  check_targets(a);
  if (!is_prices(a) && a.numel < 1)
    refuse("numel must be the number of elements of a sample, at least 1, got ", a.numel);
  if (a.row < 0 || a.row >= a.table.size(-2))
    refuse("row must be in 0..", a.table.size(-2) - 1, ", got ", a.row);
  if (a.latch) check_latch(a);
}

Params prepare(const Arguments& a, const TensorView& result, const TensorView* next_latch) {
  check_result(a, result);
  if (a.latch) check_next_latch(a, result, *next_latch);
  const bool has_step = a.step != nullptr;
  Params p;
  p.stats = static_cast<const double*>(a.stats.data);
  std::copy_n(a.stats.strides, 2, p.stats_stride);
  p.parameters = static_cast<const double*>(a.parameters.data);
  p.parameters_stride[1] = a.parameters.stride(-1);
  p.table = a.table.data;
  p.table_stride[1] = a.table.stride(-2);
  p.table_stride[2] = a.table.stride(-1);
  p.is_double = a.table.dtype == DType::f64;
  if (has_step) {
    p.parameters_stride[0] = a.parameters.strides[0];
    p.table_stride[0] = a.table.strides[0];
    p.step = static_cast<const int64_t*>(a.step->data);
    p.steps = a.table.sizes[0];
  }
  p.method = static_cast<Method>(a.method);
  p.numel = static_cast<double>(a.numel);
  p.targets = static_cast<int>(a.targets.size());
  p.features = is_prices(a) ? 0 : p.targets;
  std::copy(a.targets.begin(), a.targets.end(), p.target);
  p.samples = a.stats.sizes[0];
  p.rows = a.table.size(-2);
  p.columns = a.table.size(-1);
  p.row = a.row;
  p.result = result.data;
  std::copy_n(result.strides, 3, p.result_stride);
  if (a.latch) {
    p.latch = static_cast<const uint8_t*>(a.latch->data);
    p.latch_stride = a.latch->strides[0];
    p.next_latch = static_cast<uint8_t*>(next_latch->data);
    p.next_latch_stride = next_latch->strides[0];
  }
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::guidance_coefficients
