// SPDX-License-Identifier: Apache-2.0
// The formula of scaled_error_norm, generic over lanes; shared by the CPU loop and the CUDA kernels.
#pragma once

#include "core/lanes.h"
#include "solver/scaled_error_norm/scaled_error_norm.h"

namespace fastdiff::scaled_error_norm {
namespace {

// An element's square, added to the sum. NaN passes: at_least keeps it in its second argument, and one in
// `lower` is in the difference too.
template <class T>
struct SquaredError {
  T atol, rtol;

  explicit SquaredError(const Params& p) : atol(static_cast<T>(p.atol)), rtol(static_cast<T>(p.rtol)) {}

  template <class V>
  FASTDIFF_HD void operator()(const V (&x)[kInputs], V (&sum)[kSums]) const {
    const V lower = x[0], higher = x[1], previous = x[2];
    const V magnitude = at_least(abs_(lower), abs_(previous));
    const V delta = at_least(splat<V>(atol), mul(splat<V>(rtol), magnitude));
    const V error = div(fma_(splat<V>(T(-1)), lower, higher), delta);
    sum[0] = fma_(error, error, sum[0]);
  }
};

// The root of the mean, into the sample's place.
struct Root {
  void* result;
  int64_t stride, numel;
  bool is_double;

  explicit Root(const Params& p)
      : result(p.result), stride(p.result_stride), numel(p.source.numel), is_double(p.compute_double) {}

  FASTDIFF_HD void operator()(int64_t sample, const double (&sum)[kSums]) const {
    const double root = sqrt_(sum[0] / static_cast<double>(numel));
    store_as<double>(result, is_double ? DType::f64 : DType::f32, sample * stride, root);
  }
};

}  // namespace
}  // namespace fastdiff::scaled_error_norm
