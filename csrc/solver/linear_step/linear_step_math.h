// SPDX-License-Identifier: Apache-2.0
// The formula of linear_step, generic over lanes; shared by the CPU loop and the CUDA kernel.
#pragma once

#include "core/lanes.h"
#include "core/philox.h"
#include "solver/linear_step/linear_step.h"

namespace fastdiff::linear_step {
namespace {

// A sum starts at -0, so that its first fma is the plain product, signed zeros included.
template <class T>
FASTDIFF_HD T empty_sum() {
  return T(-0.0);
}

// sum + c x
template <class V>
FASTDIFF_HD V add_term(V sum, V c, V x) {
  return fma_(c, x, sum);
}

// sum + c x where the coefficient differs between elements: an exact zero does not read x
template <class V>
FASTDIFF_HD V add_varying_term(V sum, V c, V x) {
  return if_zero(c, sum, fma_(c, x, sum));
}

// c + g c', the coefficient under gate weight g
template <class V>
FASTDIFF_HD V gated(V c, V gate_c, V g) {
  return fma_(g, gate_c, c);
}

template <class V>
FASTDIFF_HD V clamp(V y, V lo, V hi) {
  return at_most(hi, at_least(lo, y));
}

// The coefficient in the arithmetic type, whichever type the table has.
template <class T>
FASTDIFF_HD T coefficient(const Table& table, int64_t step, int64_t sample, int row, int column) {
  const int64_t at = step * table.step_stride + sample * table.sample_stride + row * table.row_stride +
                     column * table.column_stride;
  return table.is_double ? static_cast<T>(static_cast<const double*>(table.data)[at])
                         : static_cast<T>(static_cast<const float*>(table.data)[at]);
}

// The standard deviation of one stored part of the noise: complex noise has total variance 1.
FASTDIFF_HD float noise_scale(bool complex) {
  return complex ? 0.70710678f : 1.0f;
}

FASTDIFF_HD NoiseKey noise_key(const Settings& p, int64_t step, int64_t sample) {
  const int64_t* seed_offset = p.rng + sample * p.rng_sample_stride;
  return {static_cast<uint64_t>(seed_offset[0]),
          static_cast<uint64_t>(seed_offset[1]) + static_cast<uint64_t>(step)};
}

}  // namespace
}  // namespace fastdiff::linear_step
