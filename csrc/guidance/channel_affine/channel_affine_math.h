// SPDX-License-Identifier: Apache-2.0
// The formula of channel_affine and the order of its sums; shared by the CPU loop and the CUDA kernels.
#pragma once

#include "core/lanes.h"
#include "core/reduce.h"
#include "guidance/channel_affine/channel_affine.h"

namespace fastdiff::channel_affine {
namespace {

using reduce::kChunk;
using reduce::kLanes;
using reduce::kSlots;

// ---- a plane's moments ----------------------------------------------------------------------------

// What one chunk of a plane says, in the arithmetic type. Its sums are about its own mean, so that they lose
// nothing to a mean that is large, or to an element that is; `sum` is what rounding the mean has left over.
struct Piece {
  double mean;
  double sum;      // of x - mean
  double squares;  // of (x - mean)^2
};

FASTDIFF_HD int64_t chunks_of(int64_t numel) {
  return (numel + kChunk - 1) / kChunk;
}

FASTDIFF_HD double count_of(int64_t chunk, int64_t numel) {
  const int64_t rest = numel - chunk * kChunk;
  return static_cast<double>(rest < kChunk ? rest : kChunk);
}

// The terms that a sum over the chunks, in slots as reduce.h adds them, turns into sums over the plane.
struct AboutNumber {
  const Piece* pieces;
  int64_t numel;
  double number;

  // of x - number
  FASTDIFF_HD double sum(int64_t chunk) const {
    const Piece& piece = pieces[chunk];
    return fma_(count_of(chunk, numel), piece.mean - number, piece.sum);
  }
  // of (x - number)^2
  FASTDIFF_HD double squares(int64_t chunk) const {
    const Piece& piece = pieces[chunk];
    const double shift = piece.mean - number;
    return fma_(shift, fma_(count_of(chunk, numel), shift, 2.0 * piece.sum), piece.squares);
  }
};

struct Moments {
  double mean, deviation;
};

// The mean is found as a distance from the first chunk's: exact for a constant plane, whose deviation is then
// exactly 0. sum_over(term) is the sum of term(chunk).
FASTDIFF_HD double first_guess(const Piece* pieces, int64_t numel) {
  return numel > 0 ? pieces[0].mean : 0.0;
}
FASTDIFF_HD double mean_of(double guess, double sum, int64_t numel) {
  return guess + sum / static_cast<double>(numel);  // 0/0 without elements
}
FASTDIFF_HD double deviation_of(double squares, int64_t numel) {
  return sqrt_(at_least(0.0, squares) / static_cast<double>(numel > 1 ? numel - 1 : 0));
}

FASTDIFF_HD bool has_style(const Params& p) {
  return p.style_samples > 0;
}

FASTDIFF_HD double at(const Numbers& numbers, int64_t sample, int64_t channel) {
  return load_as<double>(numbers.data, numbers.dtype,
                         sample * numbers.sample_stride + channel * numbers.channel_stride);
}

// The target of a plane where there is no style.
FASTDIFF_HD Moments given(const Params& p, int64_t sample, int64_t channel) {
  if (p.mean.data == nullptr) return {0.0, 0.0};
  return {at(p.mean, sample, channel), at(p.std, sample, channel)};
}

// ---- the result -----------------------------------------------------------------------------------

// y = scale (x - center) + offset. The center is a number of the arithmetic type: x - center is exact where
// they are near each other, and what rounding the mean has left over is in the offset.
struct Affine {
  double center, scale, offset;
};

FASTDIFF_HD double weighted(double weight, double s, double other_weight, double c) {
  const double other = other_weight == 0.0 ? 0.0 : other_weight * c;
  return weight == 0.0 ? other : fma_(weight, s, other);
}

// T: the arithmetic type of x
template <class T>
FASTDIFF_HD Affine affine(const Params& p, const Moments& content, const Moments& target) {
  const double mean = weighted(p.style_weight, target.mean, p.content_weight, content.mean);
  const double deviation = weighted(p.style_weight, target.deviation, p.content_weight, content.deviation);
  const double center = static_cast<double>(static_cast<T>(content.mean));
  const double scale = deviation / (content.deviation + p.eps);
  return {center, scale, fma_(scale, center - content.mean, mean)};
}

template <class V>
FASTDIFF_HD V apply(V center, V scale, V offset, V x) {
  return fma_(scale, x - center, offset);
}

// ---- how planes lie -------------------------------------------------------------------------------

inline bool is_contiguous(const Planes& t) {
  return t.dims == 1 && t.stride[0] == 1;
}

// An element's channels lie side by side: channels_last.
inline bool is_across(const Planes& t, int64_t channels) {
  return t.channel_stride == 1 && channels > 1 && !is_contiguous(t);
}

// A panel of planes fits into the cache whole.
inline bool is_small(const Params& p) {
  return p.x.numel <= kChunk && p.style.numel <= kChunk;
}

// ---- shares of the work on the CPU ----------------------------------------------------------------

inline constexpr int kPanel = 32;                   // channels that are worked on together
inline constexpr int64_t kSerialNumel = 32 * 1024;  // fewer elements are not worth a second thread
inline constexpr int64_t kPartsPerThread = 4;       // evens out what threads get to do
inline constexpr int64_t kStackPieces = 256;

// A group is what is done at one go, so that elements are still in the cache when they are read again: a
// panel of channels of one sample, or of all samples where they have one style, which is then read once.
struct Shares {
  bool x_across, style_across;  // is_across
  bool together;                // measure a panel's planes of x, then write them; else plane by plane
  bool within;                  // groups are too few for the threads: these share each plane's chunks
  int width;                    // channels of a panel
  int64_t panels, groups, parts;
  int64_t pieces;  // that a group needs at a time

  Shares(const Params& p, int threads)
      : x_across(is_across(p.x, p.channels)),
        style_across(has_style(p) && is_across(p.style, p.channels)),
        together(x_across || is_small(p)),
        width(together || style_across ? kPanel : 1),
        panels((p.channels + width - 1) / width),
        groups(panels * (p.style_samples == 1 ? 1 : p.samples)) {
    const int64_t planes = p.samples * p.channels, numel = planes * p.x.numel;
    const int64_t of_style = p.style_samples * p.channels * p.style.numel;
    const bool alone = threads == 1 || numel + of_style < kSerialNumel;
    const bool splits_evenly = groups % threads == 0 || groups >= kPartsPerThread * threads;
    within = !alone && !splits_evenly && (numel + of_style) / groups >= kSerialNumel;
    parts = alone ? 1 : groups < kPartsPerThread * threads ? groups : kPartsPerThread * threads;
    const int64_t of_x = chunks_of(p.x.numel) * (together ? width : 1);
    const int64_t others = chunks_of(p.style.numel) * width;
    pieces = of_x > others ? of_x : others;
  }
};

// Pieces of all planes, those of the style first.
inline int64_t style_pieces(const Params& p) {
  return p.style_samples * p.channels * chunks_of(p.style.numel);
}
inline int64_t all_pieces(const Params& p) {
  return style_pieces(p) + p.samples * p.channels * chunks_of(p.x.numel);
}
inline int64_t bytes_of(int64_t pieces, int64_t affines) {
  return pieces * static_cast<int64_t>(sizeof(Piece)) + affines * static_cast<int64_t>(sizeof(Affine));
}

// ---- and on CUDA ----------------------------------------------------------------------------------

inline bool takes_one_block(const Params& p) {
  return chunks_of(p.x.numel) <= reduce::kOneBlockChunks &&
         chunks_of(p.style.numel) <= reduce::kOneBlockChunks;
}

}  // namespace
}  // namespace fastdiff::channel_affine
