// SPDX-License-Identifier: Apache-2.0
// The weights of each guidance method, in float64, from a sample's moments.
//
// Every method is u' + s v (or c + s v), with u' and v in the span of the features: its weights are all that
// is left of it. They are taken over u, d = c - u and the features after them, so that nothing cancels when u
// and c are close, and those of c itself are then taken off: what is small is summed up apart, and only its
// addition to c rounds at the size of a prediction.
#pragma once

#include <cmath>

#include "core/lanes.h"
#include "guidance/guidance_coefficients/guidance_coefficients.h"

namespace fastdiff::guidance_coefficients {
namespace {

// The least norm in torch's cosine_similarity and in its normalize.
constexpr double kCosineNorm = 1e-8, kUnitNorm = 1e-12;
// Added to |u|^2 in CFG-Zero*'s published code.
constexpr double kZeroStar = 1e-8;

FASTDIFF_HD double larger(double a, double b) {
  return a < b ? b : a;
}

// The sums of one sample, as guidance_stats lays them out.
struct Moments {
  const double* sums;
  int64_t stride;
  double numel;

  FASTDIFF_HD double sum(int j) const { return sums[j * (j + 3) / 2 * stride]; }
  FASTDIFF_HD double dot(int i, int j) const {
    return i <= j ? sums[(j * (j + 3) / 2 + 1 + i) * stride] : dot(j, i);
  }
};

// A vector in the span of the features.
struct Combination {
  double of[kMaxFeatures] = {};

  FASTDIFF_HD void add(double factor, const Combination& other) {
    for (int j = 0; j < kMaxFeatures; ++j) of[j] = of[j] + factor * other.of[j];
  }
};

FASTDIFF_HD Combination feature(int j) {
  Combination f;
  f.of[j] = 1;
  return f;
}
FASTDIFF_HD Combination cond() {
  Combination c;
  c.of[0] = c.of[1] = 1;
  return c;
}

FASTDIFF_HD double dot(const Moments& m, int features, const Combination& a, const Combination& b) {
  double sum = 0;
  for (int i = 0; i < features; ++i)
    for (int j = 0; j < features; ++j)
      if (a.of[i] != 0 && b.of[j] != 0) sum = sum + a.of[i] * b.of[j] * m.dot(i, j);
  return sum;
}

// Of the elements, with n - 1.
FASTDIFF_HD double deviation(const Moments& m, int features, const Combination& a) {
  double sum = 0;
  for (int j = 0; j < features; ++j)
    if (a.of[j] != 0) sum = sum + a.of[j] * m.sum(j);
  const double square = dot(m, features, a, a) - sum * sum / m.numel;
  return sqrt_(larger(square, 0.0) / (m.numel - 1));
}

// e^x to a few roundoffs with the same bits everywhere: x = k ln 2 + r, and the series of e^r.
FASTDIFF_HD double exp_(double x) {
  constexpr double kLog2e = 1.4426950408889634, kLn2High = 0.69314718055994529,
                   kLn2Low = 2.3190468138462996e-17;
  constexpr int kTerms = 14;  // r^15 / 15! < 2^-53 at |r| = ln 2 / 2
  if (x != x) return x;
  if (x < -745.2) return 0;
  if (x > 709.7) return __builtin_inf();
  const double scaled = x * kLog2e;
  const double k = static_cast<double>(static_cast<int64_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
  const double r = fma_(-k, kLn2Low, fma_(-k, kLn2High, x));
  double sum = 1;
  for (int n = kTerms; n > 0; --n) sum = fma_(sum, r / n, 1.0);
  // In two factors: 2^k alone may be below the least normal number.
  const auto power = [](int64_t e) { return bits_as<double>(static_cast<uint64_t>(e + 1023) << 52); };
  const auto e = static_cast<int64_t>(k), half = e / 2;
  return sum * power(half) * power(e - half);
}

// ---- the methods ----------------------------------------------------------------------------------

// guided = u' + s v + w, or c + s v + w
struct Blend {
  Combination uncond;  // u'
  Combination change;  // v
  Combination more;    // w
  double scale;
};

// Sadat et al. 2024 (APG): v loses (1 - eta) of its part along c, its norm is limited. With
// momentum, v is the running average f_2.
FASTDIFF_HD void project(const Moments& m, int features, double eta, double most, Blend& blend) {
  const Combination c = cond(), v = feature(features > 2 ? 2 : 1);
  double factor = 1;
  if (most > 0) {
    const double ratio = most / sqrt_(dot(m, features, v, v));
    factor = ratio < 1 || ratio != ratio ? ratio : 1;
  }
  const double norm = larger(sqrt_(dot(m, features, c, c)), kUnitNorm);
  const double along = dot(m, features, v, c) / (norm * norm);
  blend.change = Combination{};
  blend.change.add(factor, v);
  if (eta != 1) blend.change.add(-(1 - eta) * factor * along, c);
}

// Fan et al. 2025 (CFG-Zero*): u' = (c.u / |u|^2) u, the fit of c by a multiple of u.
FASTDIFF_HD void fit_uncond(const Moments& m, Blend& blend) {
  const double fit = (m.dot(0, 0) + m.dot(0, 1)) / (m.dot(0, 0) + kZeroStar);
  blend.uncond.of[0] = fit;
  blend.change = feature(1);
  blend.change.of[0] = 1 - fit;
}

// Kwon et al. 2025 (TCFG): u' is u's part along the first right singular vector of [c; u]. With (a, b) the
// first eigenvector of their 2x2 Gram matrix that is b (a c + b u): no decomposition of long vectors.
FASTDIFF_HD void drop_tangential(const Moments& m, Blend& blend) {
  const double uu = m.dot(0, 0), ud = m.dot(0, 1), dd = m.dot(1, 1);
  const double difference = 2 * ud + dd, twice = 2 * (uu + ud);  // |c|^2 - |u|^2, 2 c.u
  const double root = sqrt_(fma_(twice, twice, difference * difference));
  // Without a first direction (u = c = 0) all of u is kept.
  const double ab = root == 0 ? 0 : 0.5 * twice / root, bb = root == 0 ? 1 : 0.5 - 0.5 * difference / root;
  blend.uncond.of[0] = bb + ab;
  blend.uncond.of[1] = ab;
  blend.change = cond();
  blend.change.add(-1, blend.uncond);
}

// Titov et al. 2024 (Guide-and-Rescale): the gradient f_2 gets clip(|f_2| / |s d|) times the norm of s d.
// Both limits of 0/0 as in the published code.
FASTDIFF_HD void balance(const Moments& m, double lower, double upper, Blend& blend) {
  const double change = blend.scale < 0 ? -blend.scale : blend.scale;
  const double norm = change * sqrt_(m.dot(1, 1)), gradient = sqrt_(m.dot(2, 2));
  const double ratio = norm == 0 ? 1 : gradient / norm;
  const double wanted = ratio < lower ? lower : ratio > upper ? upper : ratio;
  blend.more.of[2] = gradient == 0 ? 1 : wanted / ratio;
}

// Armandpour et al. 2023 (Perp-Neg): v = d - sum_j weight_j (f_j - (f_j.d / |d|^2) d)
FASTDIFF_HD void remove_negatives(const Moments& m, int features, const double* weight, int64_t stride,
                                  Blend& blend) {
  const double dd = m.dot(1, 1);
  for (int j = 2; j < features; ++j) {
    const double w = weight[(j - 2) * stride];
    const double along = dd == 0 ? 0 : m.dot(1, j) / dd;
    blend.change.of[j] = -w;
    blend.change.of[1] = blend.change.of[1] + w * along;
  }
}

// What a thread knows of its sample.
struct Sample {
  Moments moments;
  int features;
  const double* parameter;
  int64_t parameter_stride;

  FASTDIFF_HD double operator[](Parameter p) const { return parameter[p * parameter_stride]; }
};

FASTDIFF_HD Combination guided(Method method, const Sample& x) {
  const Moments& m = x.moments;
  const bool from_cond = x[kFromCond] != 0;
  Blend blend{feature(0), feature(1), {}, x[kScale]};
  if (method == Method::cfg && x.features > 2) blend.more.of[2] = x[kFirst];
  if (method == Method::cfg && x.features > 3) blend.more.of[3] = x[kSecond];
  if (method == Method::apg) project(m, x.features, x[kFirst], x[kSecond], blend);
  if (method == Method::zero_star) fit_uncond(m, blend);
  if (method == Method::tangential) drop_tangential(m, blend);
  if (method == Method::norm_balanced) balance(m, x[kFirst], x[kSecond], blend);
  if (method == Method::perpendicular)
    remove_negatives(m, x.features, x.parameter + kFirst * x.parameter_stride, x.parameter_stride, blend);
  if (method == Method::magnitude_aware) {
    // MAMBO-G: the scale fades where d is long beside u
    const double fade = exp_(-x[kFirst] * (sqrt_(m.dot(1, 1)) / sqrt_(m.dot(0, 0))));
    blend.scale = from_cond ? blend.scale * fade : 1 + (blend.scale - 1) * fade;
  }
  Combination sum = from_cond ? cond() : blend.uncond;
  sum.add(1, blend.more);
  sum.add(blend.scale, blend.change);
  return sum;
}

// Lin et al. 2024, section 3.4: guided keeps the deviation of c, to the part phi.
FASTDIFF_HD double rescaled(const Sample& x, const Combination& sum) {
  const double phi = x[kRescale];
  if (phi == 0) return 1;
  return phi * (deviation(x.moments, x.features, cond()) / deviation(x.moments, x.features, sum)) + (1 - phi);
}

// Castillo et al. 2025 (Adaptive Guidance): the cosine of k u + l x and k c + l x, f_2 being x - u. At high
// noise x0 is a small difference of large multiples of u and x; of u and x - u it is a sum of small ones.
FASTDIFF_HD double cosine(const Sample& x) {
  Combination u, c;
  u.of[0] = c.of[0] = x[kAlongPrediction] + x[kAlongState];
  c.of[1] = x[kAlongPrediction];
  u.of[2] = c.of[2] = x[kAlongState];
  const double uu = dot(x.moments, x.features, u, u), cc = dot(x.moments, x.features, c, c);
  return dot(x.moments, x.features, u, c) /
         (larger(sqrt_(larger(uu, 0.0)), kCosineNorm) * larger(sqrt_(larger(cc, 0.0)), kCosineNorm));
}

// ---- Black-Scholes --------------------------------------------------------------------------------

// C = S Phi(d_1) - K e^(-r tau) Phi(d_2); as tau or sigma go to 0 the payoff max(S - K e^(-r tau), 0), and 0
// for S <= 0.
FASTDIFF_HD double call_price(double spot, double strike, double rate, double sigma, double tau) {
  const double discounted = strike * exp(-rate * tau), spread = sigma * sqrt_(tau);
  if (!(spot > 0)) return spot != spot ? spot : 0;
  if (!(spread > 0)) return larger(spot - discounted, 0.0);
  const double d1 = (log(spot / strike) + (rate + 0.5 * sigma * sigma) * tau) / spread, d2 = d1 - spread;
  constexpr double kRootHalf = 0.70710678118654752;
  return 0.5 * (spot * erfc(-d1 * kRootHalf) - discounted * erfc(-d2 * kRootHalf));
}

// The candidate of the least price; of equal ones the first. NaN never wins, unless all are.
FASTDIFF_HD int cheapest(const Sample& x, int candidates) {
  int best = 0;
  double least = __builtin_inf();
  for (int n = 0; n < candidates; ++n) {
    const double price =
        call_price(x.moments.sums[n * x.moments.stride], x[kFirst], x[kSecond], x[kThird], x[kFourth]);
    if (price < least) least = price, best = n;
  }
  return best;
}

// ---- a sample's weights ---------------------------------------------------------------------------

struct Weights {
  double of[kMaxTargets] = {};
  bool latched = false;
};

FASTDIFF_HD Weights weights(const Params& p, int64_t step, int64_t sample) {
  const Sample x{{p.stats + sample * p.stats_stride[0], p.stats_stride[1], p.numel},
                 p.features,
                 p.parameters + step * p.parameters_stride[0],
                 p.parameters_stride[1]};
  Weights w;
  if (p.method == Method::black_scholes) {
    w.of[cheapest(x, p.targets)] = 1;
    return w;
  }
  if (p.latch) w.latched = p.latch[sample * p.latch_stride] != 0 || cosine(x) >= x[kThreshold];
  if (w.latched) return w;
  const Combination c = cond(), sum = guided(p.method, x);
  const double factor = rescaled(x, sum);
  for (int j = 0; j < p.features; ++j) w.of[j] = factor * sum.of[j] - c.of[j];
  return w;
}

// One entry of the sample's table.
template <class T>
FASTDIFF_HD void write_entry(const Params& p, int64_t step, int64_t sample, const Weights& w, int64_t row,
                             int64_t column) {
  const int64_t from = step * p.table_stride[0] + row * p.table_stride[1] + column * p.table_stride[2];
  const int64_t to = sample * p.result_stride[0] + row * p.result_stride[1] + column * p.result_stride[2];
  double value = static_cast<double>(static_cast<const T*>(p.table)[from]);
  if (row == p.row)
    for (int n = 0; n < p.targets; ++n)
      if (p.target[n] == column) value = value + w.of[n];
  if (w.latched && row <= p.row) value = 0;
  static_cast<T*>(p.result)[to] = static_cast<T>(value);
}

}  // namespace
}  // namespace fastdiff::guidance_coefficients
