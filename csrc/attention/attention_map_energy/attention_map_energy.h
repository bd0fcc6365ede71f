// SPDX-License-Identifier: Apache-2.0
// attention_map_energy: how far attention maps are from those of a reference,
//
//   energy[b] = mean_{h, q, k} (A - A*)^2     A = softmax(scale q k^T), A* = softmax(scale q_ref k_ref^T)
//
// without forming the maps. Multiply-adds per pair of tokens: on the CPU 2 D, a product for each map, and two
// exponentials; memory of a thread is as many rows of the maps as fit into its cache. On CUDA 4 D and four
// exponentials, as rows of thousands of keys do not fit into shared memory: once for the rows' sums, and
// again for the difference.
#pragma once

#include "attention/maps.h"
#include "core/isa.h"
#include "core/team.h"

namespace fastdiff::attention_map_energy {

using Arguments = attention::MapArguments;
using Params = attention::Maps;

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& energy);

// Memory that a launch needs, best aligned to a cache line; its contents do not matter.
int64_t cpu_scratch_bytes(const Params& params, int threads);
int64_t scratch_bytes(const Params& params);  // launch_cuda, on the device

template <Isa>
struct Cpu {
  static void run(const Params& params, void* scratch, const Team& team);
};

void launch_cuda(const Params& params, void* scratch, int device, void* stream);

}  // namespace fastdiff::attention_map_energy
