// SPDX-License-Identifier: Apache-2.0
// Two attention maps of the same shape, which are compared and never stored: a map A = softmax(scale q k^T)
// and its reference A*, made of q_ref and k_ref.
#pragma once

#include "attention/plan.h"
#include "core/reduce.h"

namespace fastdiff::attention {

struct MapArguments {
  TensorView q, k;          // [B, H, N_q, D], [B, H, N_kv, D]
  TensorView q_ref, k_ref;  // the same
  double scale = 1;
};

struct Maps {
  Extent extent;
  Heads q[2], k[2];  // of the map and of its reference
  double scale = 1;
  Scores energy;  // [B]: `sample` is its stride

  bool wide() const { return q[0].dtype == DType::f64; }
  // Of a sample: what the energy is the mean of.
  constexpr double numel() const {
    return static_cast<double>(extent.heads) * static_cast<double>(extent.queries) *
           static_cast<double>(extent.keys);
  }
  // Of the sums that are gradients; 0 where there is nothing to sum.
  constexpr double gradient_factor() const { return numel() == 0 ? 0.0 : 2 * scale / numel(); }
};

// ---- the desk's part: maps_desk.cpp ---------------------------------------------------------------

// Shapes, dtypes and scale. Throws Refusal.
void check_maps(const char* op, const MapArguments& arguments);

// Checks the energy, and that no result shares memory with an input or another one. Throws Refusal.
Maps maps_of(const char* op, const MapArguments& arguments, const TensorView& energy,
             std::vector<Named> other_results = {});

// Bytes of device memory that launches for such maps, or for such queries, need.
int64_t map_scratch_bytes(const Maps& maps);
int64_t map_scratch_bytes(const TensorView& q);

// What results are of: float32, or float64 for a float64 q.
DType result_dtype(const TensorView& q);

// ---- what is known of a query on the device -------------------------------------------------------

// An element of its row of a map is part 2^(score - highest), of a score in units of log 2.
template <class T>
struct MapRow {
  T highest, part;
};

// Memory for that, [B, H, N_q] each.
template <class T>
struct MapScratch {
  double* energy;
  MapRow<T>* rows[2];
  T* mean;  // sum over k of A (A - A*)

  static constexpr int64_t kBytes = sizeof(double) + 2 * sizeof(MapRow<T>) + sizeof(T);  // of a query
  MapScratch(const Maps& m, void* memory) {
    const int64_t queries = m.extent.samples * m.extent.heads * m.extent.queries;
    energy = static_cast<double*>(memory);
    rows[0] = reinterpret_cast<MapRow<T>*>(energy + queries);
    rows[1] = rows[0] + queries;
    mean = reinterpret_cast<T*>(rows[1] + queries);
  }
};

// ---- what a pair of tokens gives ------------------------------------------------------------------

namespace {

// An element of the map, and by how much it is more than the reference's. Only this difference is squared:
// A^2 - 2 A A* + A*^2 cancels where the maps are near each other, as they are in the first steps of a
// guidance, and loses twice as many digits.
template <class V>
struct Pair {
  V weight, difference;
};
template <class V>
FASTDIFF_HD Pair<V> pair_of(V weight, V reference) {
  return {weight, sub(weight, reference)};
}
template <class V>
FASTDIFF_HD V add_energy(V sum, const Pair<V>& pair) {
  return fma_(pair.difference, pair.difference, sum);
}

}  // namespace
}  // namespace fastdiff::attention
