// SPDX-License-Identifier: Apache-2.0
// laplacian_split: an image as the bands of its Laplacian pyramid, each the detail that the next coarser
// image lacks.
//
//   coarse = down(whole)        detail = whole - up(coarse)
//
// Both stencils of a level in one pass: an image is read once, its detail and the coarse image are written
// once. What lies between two levels keeps the precision of the arithmetic. See wavelet/pyramid.h.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/space.h"
#include "core/team.h"
#include "wavelet/pyramid.h"

namespace fastdiff::laplacian_split {

using Params = pyramid::Pyramid;

struct Arguments {
  TensorView x;        // [*planes, H, W]
  int64_t levels = 2;  // bands
};

// The shapes of the bands.
struct Bands {
  int count = 0;
  int rank = 0;
  int64_t size[pyramid::kMaxLevels][kMaxRank];

  std::span<const int64_t> shape(int band) const { return {size[band], static_cast<size_t>(rank)}; }
};

// Checks all but the results and gives their shapes. Throws Refusal.
Bands check(const Arguments& arguments);

// Checks the results and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Bands& bands, std::span<const TensorView> results);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::laplacian_split
