// SPDX-License-Identifier: Apache-2.0
// guidance_coefficients: a step's coefficient table for each sample, from the statistics of its predictions.
//
//   guided = c + update,  update = sum_n w_n f_n        f: the features of guidance_stats; w: see the _math.h
//   out[b,i,k] = table[s,i,k] + sum_n [i = row and k = target_n] w_n
//
// So a program for linear_step in which the update's row is still open becomes one that is whole, on the
// device: no host ever sees the numbers.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/view.h"

namespace fastdiff::guidance_coefficients {

// How w is found. The numbers are part of the operator's schema.
enum class Method : int {
  cfg,
  apg,              // adaptive projected guidance
  zero_star,        // CFG-Zero*
  tangential,       // TCFG
  magnitude_aware,  // MAMBO-G
  norm_balanced,    // Guide-and-Rescale
  perpendicular,    // perpendicular negative prompts
  black_scholes,    // stats are prices' inputs, one per candidate; w selects one candidate
};
inline constexpr int kMethods = 8;

// The columns of `parameters`.
enum Parameter : int {
  kScale,      // s
  kFromCond,   // 0: guided = u' + s v, 1: guided = c + s v
  kRescale,    // phi
  kThreshold,  // of the cosine; a sample that reaches it takes c from then on
  kAlongPrediction,
  kAlongState,  // the cosine is that of k u + l x and k c + l x, where f_2 = x - u
  kFirst,       // cfg: weight of f_2; apg: eta; magnitude_aware: alpha; norm_balanced: lower; perpendicular:
                // weight of the first negative; black_scholes: strike
  kSecond,      // cfg: weight of f_3; apg: norm threshold; norm_balanced: upper; perpendicular: second;
                // black_scholes: rate
  kThird,       // black_scholes: sigma
  kFourth,      // black_scholes: tau
  kParameters
};

inline constexpr int kMaxFeatures = 4;
inline constexpr int kMaxTargets = 8;

// Absent tensors are null.
struct Arguments {
  TensorView stats;                   // [B, F (F + 3) / 2] of F features, or [B, candidates]
  TensorView parameters;              // [S?, kParameters]
  TensorView table;                   // [S?, M, C]
  const TensorView* step = nullptr;   // [] or [1], int64; S is there if it is
  const TensorView* latch = nullptr;  // [B], uint8: 1 where the threshold has been reached
  int64_t method = 0, numel = 0;      // elements of a sample
  int64_t row = 0;                    // of the update; a latched sample needs neither it nor those before
  std::span<const int64_t> targets;   // column of each weight
};

// Strides in elements.
struct Params {
  const double* stats = nullptr;
  int64_t stats_stride[2] = {};  // sample, number
  int features = 2;

  const double* parameters = nullptr;
  int64_t parameters_stride[2] = {};  // step, column
  const void* table = nullptr;
  int64_t table_stride[3] = {};  // step, row, column
  bool is_double = false;        // table and result
  const int64_t* step = nullptr;
  int64_t steps = 1;

  Method method = Method::cfg;
  double numel = 0;
  int targets = 0, target[kMaxTargets] = {};
  int64_t samples = 0, rows = 0, columns = 0, row = 0;

  void* result = nullptr;  // [B, M, C]
  int64_t result_stride[3] = {};
  const uint8_t* latch = nullptr;  // null: no sample is ever latched
  uint8_t* next_latch = nullptr;
  int64_t latch_stride = 0, next_latch_stride = 0;
};

// All checks but those of the results. Throws Refusal.
void check(const Arguments& arguments);

// Checks the results, `next_latch` only with a latch, and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result, const TensorView* next_latch);

template <Isa>
struct Cpu {
  static void run(const Params& params);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::guidance_coefficients
