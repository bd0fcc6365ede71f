// SPDX-License-Identifier: Apache-2.0
// The front desk of attention_map_energy: checks once for all callers and backends, then lays out the launch.
#include "attention/attention_map_energy/attention_map_energy_math.h"

namespace fastdiff::attention_map_energy {
namespace {

constexpr const char* kOp = "attention_map_energy";

}  // namespace

void check(const Arguments& a) {
  attention::check_maps(kOp, a);
}

Params prepare(const Arguments& a, const TensorView& energy) {
  return attention::maps_of(kOp, a, energy);
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return attention::energies_bytes(p) + attention::map_parts(p, threads) * room_numel(p) * (p.wide() ? 8 : 4);
}

int64_t scratch_bytes(const Params& p) {
  return attention::map_scratch_bytes(p);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::attention_map_energy
