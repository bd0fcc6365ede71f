// SPDX-License-Identifier: Apache-2.0
// The front desk of attention_map_energy_gradient: checks once for all callers and backends, then lays out
// the launch.
#include "attention/attention_map_energy_gradient/attention_map_energy_gradient_math.h"

namespace fastdiff::attention_map_energy_gradient {
namespace {

constexpr const char* kOp = "attention_map_energy_gradient";

void check_gradient(const char* argument, const TensorView& gradient, const char* like_name,
                    const TensorView& like, DType dtype) {
  TensorView wanted = like;
  wanted.dtype = dtype;
  attention::check_like(kOp, argument, gradient, like_name, wanted);
}

}  // namespace

void check(const Arguments& a) {
  attention::check_maps(kOp, a);
}

Params prepare(const Arguments& a, const Results& results) {
  const DType dtype = attention::result_dtype(a.q);
  check_gradient("dq", results.dq, "a gradient of q", a.q, dtype);
  check_gradient("dk", results.dk, "a gradient of k", a.k, dtype);
  return {attention::maps_of(kOp, a, results.energy, {{"dq", &results.dq}, {"dk", &results.dk}}),
          attention::heads_of(results.dq), attention::heads_of(results.dk)};
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  const int64_t numel = key_sums_numel(p) + attention::map_parts(p, threads) * room_numel(p);
  return attention::energies_bytes(p) + numel * (p.wide() ? 8 : 4);
}

int64_t scratch_bytes(const Params& p) {
  return attention::map_scratch_bytes(p);
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::attention_map_energy_gradient
