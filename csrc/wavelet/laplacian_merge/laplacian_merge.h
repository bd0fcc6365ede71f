// SPDX-License-Identifier: Apache-2.0
// laplacian_merge: the image whose Laplacian pyramid has these bands.
//
//   whole = detail + up(coarse)
//
// A level is one pass: the detail and the coarse image are read once, the finer image is written once. What
// lies between two levels keeps the precision of the arithmetic. See wavelet/pyramid.h.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/space.h"
#include "core/team.h"
#include "wavelet/pyramid.h"

namespace fastdiff::laplacian_merge {

using Params = pyramid::Pyramid;

struct Arguments {
  std::span<const TensorView> bands;  // [*planes, H, W], [*planes, ceil(H / 2), ceil(W / 2)], ...
};

// Checks all but the result and gives its shape. Throws Refusal.
Shape check(const Arguments& arguments);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& result);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::laplacian_merge
