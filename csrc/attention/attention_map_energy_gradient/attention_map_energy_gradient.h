// SPDX-License-Identifier: Apache-2.0
// attention_map_energy_gradient: the energy of attention maps and, from the same pass, its gradients. With
// D = A - A* (see attention/maps.h),
//
//   energy[b] = mean_{h, q, k} D^2              r[q] = sum_k A[q, k] D[q, k]
//   ds[q, k] = 2 / (H N_q N_kv) A[q, k] (D[q, k] - r[q])
//   dq[q] = scale sum_k ds[q, k] k[k]           dk[k] = scale sum_q ds[q, k] q[q]
//
// An energy is one number for each sample, so that whatever is made of it only multiplies these: they are
// formed where the maps are known anyway, and not in a backward pass that would form the maps again.
//
// Multiply-adds per pair of tokens: on the CPU 4 D, one product for each map, dq and dk, where a forward and
// a backward pass need 8 D; and two exponentials. On CUDA 9 D: 2 for the rows' sums, 4 for dq and 3 for dk;
// there
//   dq[q] = c (sum_k A D k[k] - r[q] sum_k A k[k]),
// so that r need not be known before.
#pragma once

#include "attention/maps.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::attention_map_energy_gradient {

using Arguments = attention::MapArguments;

struct Results {
  TensorView energy;  // [B]
  TensorView dq, dk;  // like q and k, float32, or float64 for a float64 q
};

struct Params : attention::Maps {
  attention::Heads dq, dk;
};

// Checks all but the results. Throws Refusal.
void check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Results& results);

// Memory that a launch needs, best aligned to a cache line; its contents do not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);
int64_t scratch_bytes(const Params& params);  // launch_cuda, on the device

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::attention_map_energy_gradient
