// SPDX-License-Identifier: Apache-2.0
// The formula of guidance_stats, generic over lanes; shared by the CPU loop and the CUDA kernels.
#pragma once

#include "core/lanes.h"
#include "guidance/guidance_stats/guidance_stats.h"

namespace fastdiff::guidance_stats {
namespace {

// An element's features and their products, added to the sums.
template <class T, int N>
struct Moments {
  T mix[N][kMix] = {};  // of feature 2 + j in row j

  explicit Moments(const Params& p) {
    for (int j = 0; j + 2 < N; ++j)
      for (int m = 0; m < kMix; ++m) mix[j][m] = static_cast<T>(p.mix[j][m]);
  }

  template <class V>
  FASTDIFF_HD void operator()(const V (&x)[N], V (&sum)[sums_of(N)]) const {
    V f[N];
    f[0] = x[0];
    f[1] = sub(x[1], x[0]);
    for (int j = 2; j < N; ++j) {
      const T(&m)[kMix] = mix[j - 2];
      f[j] = fma_(splat<V>(m[2]), f[1], fma_(splat<V>(m[1]), f[0], mul(splat<V>(m[0]), x[j])));
    }
    int k = 0;
    for (int j = 0; j < N; ++j) {
      sum[k] = add(sum[k], f[j]);
      ++k;
      for (int i = 0; i <= j; ++i, ++k) sum[k] = fma_(f[i], f[j], sum[k]);
    }
  }
};

// The sums into the sample's row.
template <int N>
struct Row {
  double* result;
  int64_t sample_stride, sum_stride;

  explicit Row(const Params& p)
      : result(p.result), sample_stride(p.sample_stride), sum_stride(p.sum_stride) {}

  FASTDIFF_HD void operator()(int64_t sample, const double (&sum)[sums_of(N)]) const {
    for (int k = 0; k < sums_of(N); ++k) result[sample * sample_stride + k * sum_stride] = sum[k];
  }
};

// The first N of the tensors.
template <int N>
reduce::Source<N> source_of(const Params& p) {
  reduce::Source<N> source;
  source.samples = p.source.samples;
  source.numel = p.source.numel;
  source.dims = p.source.dims;
  for (int d = 0; d < kMaxDims; ++d) source.size[d] = p.source.size[d];
  for (int n = 0; n < N; ++n) source.x[n] = p.source.x[n];
  return source;
}

// Calls body.template operator()<T, N>() for the arithmetic type and the number of features.
template <class Body>
void with_features(const Params& p, const Body& body) {
  const auto with = [&]<class T>() {
    if (p.features == 2) return body.template operator()<T, 2>();
    if (p.features == 3) return body.template operator()<T, 3>();
    body.template operator()<T, 4>();
  };
  p.compute_double ? with.template operator()<double>() : with.template operator()<float>();
}

}  // namespace
}  // namespace fastdiff::guidance_stats
