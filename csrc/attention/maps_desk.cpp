// SPDX-License-Identifier: Apache-2.0
#include "attention/maps.h"

#include <cmath>

#include "core/layout.h"

namespace fastdiff::attention {
namespace {

void check_map(const char* op, const char* q_name, const TensorView& q, const char* k_name,
               const TensorView& k, const TensorView& first) {
  for (const auto& [argument, t] : {Named{q_name, &q}, Named{k_name, &k}}) {
    if (t->device != first.device)
      refuse(op, argument, " must be on ", device_text(first.device), " like q, got ",
             device_text(t->device));
    if (!is_real_float(t->dtype))
      refuse(op, argument, " must be float32, float16, bfloat16 or float64, got ", name(t->dtype));
    if (t->rank != 4) refuse(op, argument, " must have 4 dimensions [B, H, N, D], got ", shape_text(*t));
    if (t->sizes[2] > int64_t{1} << 30)
      refuse(op, argument, " must have at most 2^30 tokens, got ", t->sizes[2]);
  }
}

void check_shape(const char* op, const char* argument, const TensorView& t, const char* like_name,
                 const TensorView& like) {
  if (!std::equal(t.sizes, t.sizes + 4, like.sizes))
    refuse(op, argument, " must have shape ", shape_text(like), " like ", like_name, ", got ", shape_text(t));
}

}  // namespace

DType result_dtype(const TensorView& q) {
  return q.dtype == DType::f64 ? DType::f64 : DType::f32;
}

void check_maps(const char* op, const MapArguments& a) {
  check_map(op, "q", a.q, "k", a.k, a.q);
  check_map(op, "q_ref", a.q_ref, "k_ref", a.k_ref, a.q);
  const int64_t d = a.q.sizes[3];
  if (d < 8 || d > kMaxHeadDim || d % 8 != 0)
    refuse(op, "q must have a head_dim that is a multiple of 8 from 8 to ", kMaxHeadDim, ", got ", d);
  if (a.k.sizes[0] != a.q.sizes[0] || a.k.sizes[1] != a.q.sizes[1] || a.k.sizes[3] != d)
    refuse(op, "k must have shape [", a.q.sizes[0], ", ", a.q.sizes[1], ", N, ", d, "] to go with q, got ",
           shape_text(a.k));
  check_shape(op, "q_ref", a.q_ref, "q", a.q);
  check_shape(op, "k_ref", a.k_ref, "k", a.k);
  if (!std::isfinite(a.scale)) refuse(op, "scale must be finite, got ", a.scale);
}

Maps maps_of(const char* op, const MapArguments& a, const TensorView& energy,
             std::vector<Named> other_results) {
  const TensorView like{nullptr, result_dtype(a.q), 1, a.q.sizes, nullptr, a.q.device};
  check_like(op, "energy", energy, "q's samples", like);
  other_results.insert(other_results.begin(), {"energy", &energy});
  check_results(op, other_results, {{"q", &a.q}, {"k", &a.k}, {"q_ref", &a.q_ref}, {"k_ref", &a.k_ref}});
  Maps maps;
  maps.extent = {a.q.sizes[0], a.q.sizes[1], a.q.sizes[1],
                 a.q.sizes[2], a.k.sizes[2], static_cast<int>(a.q.sizes[3])};
  maps.q[0] = heads_of(a.q);
  maps.k[0] = heads_of(a.k);
  maps.q[1] = heads_of(a.q_ref);
  maps.k[1] = heads_of(a.k_ref);
  maps.scale = a.scale;
  maps.energy = {energy.data, energy.dtype, energy.strides[0], 0, 0, 0};
  return maps;
}

int64_t map_scratch_bytes(const Maps& m) {
  const int64_t queries = m.extent.samples * m.extent.heads * m.extent.queries;
  return queries * (m.wide() ? MapScratch<double>::kBytes : MapScratch<float>::kBytes);
}

int64_t map_scratch_bytes(const TensorView& q) {
  Maps maps;
  maps.q[0].dtype = q.dtype;
  if (q.rank == 4) maps.extent = {q.sizes[0], q.sizes[1], q.sizes[1], q.sizes[2], 0, 0};
  return map_scratch_bytes(maps);
}

}  // namespace fastdiff::attention
