// SPDX-License-Identifier: Apache-2.0
// guidance_stats: what a guidance has to know of its predictions, per sample, in one pass over them.
//
//   f_0 = u,  f_1 = d = c - u,  f_{2+j} = mix_j0 e_j + mix_j1 u + mix_j2 d
//   S_b = [ sum f_j, sum f_0 f_j, ..., sum f_j f_j   for j = 0, 1, ... ]
//
// Sums of d, never of c: with u and c nearly parallel, |c - u|^2 from their own products has no digits left.
// The sums are those of core/reduce.h: the same bits everywhere.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/reduce.h"
#include "core/space.h"
#include "core/team.h"

namespace fastdiff::guidance_stats {

inline constexpr int kMaxExtras = 2;
inline constexpr int kMaxFeatures = 2 + kMaxExtras;
inline constexpr int kMix = 3;  // e, u, d

constexpr int sums_of(int features) {
  return features * (features + 3) / 2;
}

struct Arguments {
  TensorView uncond, cond;             // [B, *sample]
  std::span<const TensorView> extras;  // [B, *sample] each
  std::span<const double> mix;         // 3 numbers per extra
};

struct Params {
  reduce::Source<kMaxFeatures> source;  // u, c, extras
  int features = 2;
  double mix[kMaxExtras][kMix] = {};
  bool compute_double = false;

  double* result = nullptr;  // [B, sums_of(features)]
  int64_t sample_stride = 0, sum_stride = 0;
};

// All checks but those of the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

// Memory that a launch needs besides, aligned to 8 bytes; its contents do not matter.
int64_t scratch_bytes(const Params& params);      // launch_cuda, on the device
int64_t cpu_scratch_bytes(const Params& params);  // Cpu::run

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::guidance_stats
