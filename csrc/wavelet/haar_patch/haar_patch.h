// SPDX-License-Identifier: Apache-2.0
// haar_patch: the patches of a video as channels, through a 3-D Haar wavelet packet, and back.
//
// A patch is p x p x p pixels, p = 2^L. L levels of the Haar transform, each applied to all bands of the one
// before, are for one patch the Walsh-Hadamard transform along each of its three axes:
//
//   band(f) = s sum_a (-1)^popcount(f & a) pixel(a)     a, f = 0 ... p - 1 for each of t, h and w
//
// and back is the same sum over the bands. Videos have 1 + n p frames: the first one stands for a whole
// patch in time. So there are four linear maps, A being the first:
//
//                              to bands, s                       to pixels, s
//   A       first frame p times, s = 1 / p^3
//   A^-1                                              the first p - 1 frames dropped, s = 1
//   A^T                                               the first p frames added up,    s = 1 / p^3
//   A^-T    p - 1 frames of 0 in front, s = 1
//
// The transposes are the gradients. All arithmetic but the scaling by a power of two is additions, in one
// order everywhere (haar_patch_math.h): the same bits on every backend.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/space.h"

namespace fastdiff::haar_patch {

inline constexpr int64_t kSerialNumel = 32 * 1024;  // elements; fewer are not worth a second thread
inline constexpr int kRank = 5;

struct Arguments {
  TensorView x;  // A and A^-T: [B, C, T, H, W]; A^-1 and A^T: [B, C p^3, T', H', W']
  int64_t patch = 1;
  bool inverse = false, adjoint = false;

  bool to_bands() const { return inverse == adjoint; }
};

// One side of the transform; strides in elements.
struct Side {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, frame = 0, row = 0, column = 0;
};

struct Params {
  int64_t batch = 0, channels = 0;            // B, and C of the video
  int64_t frames = 0, rows = 0, columns = 0;  // of patches: T', H', W'
  int patch = 1;
  DType dtype = DType::f32;
  bool to_bands = true;
  bool whole_first = true;  // the first frame p times, or p frames added up; else 0 or dropped
  double scale = 1;         // a power of two
  bool stream = false;      // write whole new lines past the caches
  bool quads = false;       // four neighbours of the video are one aligned access
  Side video;               // [B, C, 1 + (T' - 1) p, H' p, W' p]
  Side bands;               // [B, C p^3, T', H', W']

  int64_t lines() const { return batch * channels * frames * rows; }  // of patches side by side
  int64_t numel() const { return lines() * columns * patch * patch * patch; }
};

// Checks all but the result and gives its shape. Throws Refusal.
Shape check(const Arguments& arguments);

// Strides of a new result in the layout of x: channels_last_3d if x is, else row-major; [kRank].
void result_strides(const Arguments& arguments, const Shape& shape, int64_t* strides);

// Checks the result and lays out the launch. Throws Refusal.
Params prepare(const Arguments& arguments, const Shape& shape, const TensorView& result);

template <Isa>
struct Cpu {
  // Lines [begin, end) of Params::lines().
  static void run(const Params& params, int64_t begin, int64_t end);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::haar_patch
