// SPDX-License-Identifier: Apache-2.0
// What dwt and idwt have in common. Along each dimension both are the same stencil over a sequence s, with
// two results for every two steps:
//
//   u[k] = sum_t f_u[t] s[2k - o + t]        v[k] = sum_t f_v[t] s[2k - o + t]        0 <= t < L
//
// Forward, s is the signal, continued past its ends by the edge's rule, and u, v are its low and high band.
// Backward, s takes turns between the bands (s[2k] low, s[2k + 1] high) and u, v are two samples side by
// side. An idwt with the taps and the edge of a dwt is its adjoint: samples past the ends, of which the dwt
// made others, are added to those.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/view.h"

namespace fastdiff::wavelet {

inline constexpr int kMaxTaps = 112;  // L; the longest filters of PyWavelets have 102
inline constexpr int kMaxSpatial = 3;

enum class Edge : int8_t {
  zero,
  constant,
  symmetric,
  reflect,
  periodic,
  smooth,
  antisymmetric,
  antireflect,
  periodization,  // periodic, after a repetition of the last sample if their number is odd
  circular,       // periodic, after a 0 if their number is odd: the transpose of the inverse of periodization
};
inline constexpr int kEdges = 10;

constexpr bool is_circular(Edge edge) {
  return edge == Edge::periodization || edge == Edge::circular;
}
// Whether a sample past the ends can be made of more than one.
constexpr bool extrapolates(Edge edge) {
  return edge == Edge::smooth || edge == Edge::antireflect;
}

// A sample past the ends of a signal: a sum of at most three of its samples.
struct Extension {
  int count = 0;
  int64_t at[3] = {};
  double weight[3] = {};
};

struct Tap {
  int at = 0;           // t
  double u = 0, v = 0;  // f_u[t], f_v[t]
};

// The taps that are not 0, so ordered that no sum has a term that is: first those of both sums.
struct Stencil {
  int length = 0;  // L
  int offset = 0;  // o
  int both = 0, only_u = 0, only_v = 0;
  std::array<Tap, kMaxTaps> tap;

  int taps() const { return both + only_u + only_v; }
};

// The coefficients of a band of `size` samples.
constexpr int64_t band_size(int64_t size, int length, Edge edge) {
  return is_circular(edge) ? (size + 1) / 2 : (size + length - 1) / 2;
}
// Sample n of the signal is at 2k - offset + t for the coefficients k that it is a part of.
constexpr int signal_offset(int length, Edge edge) {
  return is_circular(edge) ? length / 2 - 1 : length - 2;
}

struct Axis {
  int64_t size = 0;      // N, of the signal
  int64_t bands = 0;     // K, of a band
  int64_t grid = 0;      // what the bands' tensor holds, at least K
  int64_t x = 0, y = 0;  // strides of the signal and of the bands
  int64_t band = 0;      // from this axis' low band to its high one
};

// The dimensions before those that are transformed: all of more than one element, outermost first.
template <int kOperands>
struct Planes {
  int64_t count = 1;
  int dims = 0;
  int64_t size[kMaxRank] = {};
  int64_t stride[kOperands][kMaxRank] = {};

  FASTDIFF_HD int64_t offset(int operand, int64_t plane) const {
    int64_t at = 0;
    for (int d = dims - 1; d >= 0; --d) {
      at += plane % size[d] * stride[operand][d];
      plane /= size[d];
    }
    return at;
  }
};

// A number for each band of each plane: scale, threshold. No data: none.
struct Numbers {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t band = 0;  // stride
};

// Desk work; `op` names the operator in refusals.
void check_bank(const char* op, std::span<const double> taps, int64_t ndim, int64_t edge);
Stencil forward_stencil(std::span<const double> taps, Edge edge);  // taps: [2 L], low and high
Stencil backward_stencil(std::span<const double> taps);

void check_float(const char* op, const char* argument, const TensorView& tensor, const TensorView& like,
                 const char* like_name);
// Numbers that broadcast to [*leading, bands].
void check_numbers(const char* op, const char* argument, const TensorView& numbers, const TensorView& like,
                   const char* like_name, const int64_t* leading, int leading_rank, int64_t bands);

namespace {

FASTDIFF_HD int64_t modulo(int64_t i, int64_t period) {
  const int64_t rest = i % period;
  return rest < 0 ? rest + period : rest;
}

// The sample at i, which is not in [0, size), as a sum of samples that are. size >= 1.
FASTDIFF_HD Extension extend(int64_t i, int64_t size, Edge edge) {
  const int64_t last = size - 1;
  const auto one = [](int64_t at, double weight) {
    Extension e;
    e.count = 1;
    e.at[0] = at;
    e.weight[0] = weight;
    return e;
  };
  if (edge == Edge::zero) return {};
  if (last == 0 && edge != Edge::antisymmetric && edge != Edge::circular) return one(0, 1);
  switch (edge) {
    case Edge::zero:
      break;
    case Edge::constant:
      return one(i < 0 ? 0 : last, 1);
    case Edge::symmetric:
    case Edge::antisymmetric: {
      const int64_t place = modulo(i, 2 * size);
      if (place < size) return one(place, 1);
      return one(2 * size - 1 - place, edge == Edge::symmetric ? 1 : -1);
    }
    case Edge::reflect: {
      const int64_t place = modulo(i, 2 * last);
      return one(place < size ? place : 2 * last - place, 1);
    }
    case Edge::periodic:
      return one(modulo(i, size), 1);
    case Edge::periodization:
    case Edge::circular: {
      const int64_t place = modulo(i, size + size % 2);
      if (place < size) return one(place, 1);
      return edge == Edge::circular ? Extension{} : one(last, 1);
    }
    case Edge::smooth: {
      const bool left = i < 0;
      const double far = static_cast<double>(left ? -i : i - last);
      Extension e;
      e.count = 2;
      e.at[0] = left ? 0 : last;
      e.at[1] = left ? 1 : last - 1;
      e.weight[0] = 1 + far;
      e.weight[1] = -far;
      return e;
    }
    case Edge::antireflect: {  // every 2 N - 2 samples it is 2 (x[N - 1] - x[0]) higher
      const int64_t place = modulo(i, 2 * last);
      const double rises = static_cast<double>((i - place) / (2 * last));
      const bool mirrored = place > last;
      const double of_last = 2 * rises + (mirrored ? 2 : 0);
      Extension e;
      const auto add = [&e](int64_t at, double weight) {
        if (weight == 0) return;
        e.at[e.count] = at;
        e.weight[e.count++] = weight;
      };
      add(0, -2 * rises);
      add(last, of_last);
      add(mirrored ? 2 * last - place : place, mirrored ? -1 : 1);
      return e;
    }
  }
  return {};
}

}  // namespace
}  // namespace fastdiff::wavelet
