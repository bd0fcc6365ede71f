// SPDX-License-Identifier: Apache-2.0
// weight_linear on the tensor cores, for activations of 16 bits or e4m3 (mma.sync, sm_80 and later).
//
// Rows lie as tiles [M / 16][steps][16][32]. In a step of 32 elements along K lane 4 g + t takes eight
// neighbours, from 8 t on, of row g and of row g + 8, and of column g the words that hold them, from which it
// makes both fragments of its products in registers. So elements are added up in an order that is not theirs,
// but the same for both factors. Of int4 the sums of a group are scaled: integers stay exact. Of e4m3 those
// of 128 elements are added in float32, because the tensor cores of Ada add with fewer bits.
#pragma once

#include "core/ptx.cuh"
#include "quant/e4m3.cuh"
#include "quant/epilogue.cuh"
#include "quant/weight_linear/weight_linear_math.h"

namespace fastdiff::weight_linear {
namespace {

using namespace quant;

constexpr int kMmaThreads = 256, kMmaWarps = kMmaThreads / kWarp;
constexpr int kStep = 32;  // elements along K
constexpr int kE4m3Group = 128;
// Rows are of DType f16, bf16, or u8: bytes of e4m3.
template <DType kRows>
constexpr int kStepBytes = 16 * kStep * size_of(kRows);  // of 16 rows
constexpr int kEights = kPiece / kEight;                 // of a piece, which is two steps
constexpr int kFewRows = 16;

// 4 by 2 warps of 32 rows by 32 columns; with few rows, all warps have the same 16 rows and 32 columns.
constexpr int kTileRows = 128, kTilePanels = 4, kTileColumns = kTilePanels * kPanel;
constexpr int kFewColumns = 2 * kPanel;
constexpr int kTilePitch = kTileColumns + 4, kFewPitch = kFewColumns + 4;  // floats; rows 4 banks apart

__device__ __forceinline__ int64_t steps_of(const Params& p) {
  return (p.epilogue.inner + kStep - 1) / kStep;
}
__device__ __forceinline__ int64_t pieces_of(const Params& p) {
  return (p.epilogue.inner + kPiece - 1) / kPiece;
}

// Of 16 rows, all of their steps.
template <DType kRows>
__device__ __forceinline__ const unsigned char* tiles_of(const Params& p, int64_t rows_by_16) {
  return reinterpret_cast<const unsigned char*>(p.blocks) +
         rows_by_16 * pieces_of(p) * (2 * kStepBytes<kRows>);
}

// What a lane takes of a row: eight neighbours.
template <DType kRows>
struct Eight {
  using type = uint4;
};
template <>
struct Eight<DType::u8> {
  using type = uint2;
};

template <DType kRows>
__device__ __forceinline__ typename Eight<kRows>::type eight_at(const unsigned char* step, int row, int t) {
  constexpr int kBytes = kEight * size_of(kRows);
  return *reinterpret_cast<const typename Eight<kRows>::type*>(step + row * (kStep / kEight * kBytes) +
                                                               t * kBytes);
}

template <DType kRows>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  return kRows == DType::bf16 ? ptx::pack_bf16(low, high) : ptx::pack_f16(low, high);
}

template <DType kRows>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kRows == DType::bf16) {
    ptx::mma_m16n8k16_bf16(d, a, b);
  } else {
    ptx::mma_m16n8k16_f16(d, a, b);
  }
}

// Eight neighbours along K of a column, as pairs.
template <Scheme kScheme, bool kHasZero, DType kRows, class Words>
__device__ __forceinline__ void decode(const Words& word, float zero, uint32_t (&pairs)[4]) {
  if constexpr (kScheme == Scheme::bf16) {
    for (int i = 0; i < 4; ++i) pairs[i] = word(i);
  } else {
    // The scale follows behind the sums.
    const auto weight = [&](float q) { return weight_of<kHasZero>(q, zero); };
    pairs[0] = pair_of<kRows>(weight(stored<kScheme, 0>(word)), weight(stored<kScheme, 1>(word)));
    pairs[1] = pair_of<kRows>(weight(stored<kScheme, 2>(word)), weight(stored<kScheme, 3>(word)));
    pairs[2] = pair_of<kRows>(weight(stored<kScheme, 4>(word)), weight(stored<kScheme, 5>(word)));
    pairs[3] = pair_of<kRows>(weight(stored<kScheme, 6>(word)), weight(stored<kScheme, 7>(word)));
  }
}

// A warp's sums: kTiles by 16 rows, four times 8 columns.
template <Scheme kScheme, bool kHasZero, DType kRows, int kTiles>
class WarpSums {
  static constexpr bool kE4m3 = kRows == DType::u8, kGroups = kE4m3 || kScheme == Scheme::int4;
  static constexpr int kEightsOfColumns = 4;

 public:
  // The warp's columns begin at a slot.
  __device__ WarpSums(const Params& p, int64_t slot) : p_(p), slot_(slot) {}

  // rows(tile, half): eight of row g + 8 half; word(j, i): the i-th word of column 8 j + g. At the end of
  // a group, and where it is the last step of a warp, its sums are scaled.
  template <class RowsOf, class Words>
  __device__ void step(int64_t number, bool last, const RowsOf& rows, const Words& word) {
    const int64_t length = kE4m3 ? kE4m3Group : p_.group, group = kGroups ? number * kStep / length : 0;
    typename Eight<kRows>::type a[kTiles][2];
    for (int i = 0; i < kTiles; ++i) a[i][0] = rows(i, 0), a[i][1] = rows(i, 1);
    for (int j = 0; j < kEightsOfColumns; ++j) {
      if (slot_ + 8 * j >= p_.epilogue.slots) break;
      multiply_eights(group, j, a, [&](int i) { return word(j, i); });
    }
    if constexpr (kGroups)
      if (last || (number + 1) * kStep % length == 0) scale(group);
  }

  // sums [16 kTiles][pitch], from the warp's first row and column on
  __device__ void store(float* sums, int pitch) const {
    for (int i = 0; i < kTiles; ++i)
      for (int j = 0; j < kEightsOfColumns; ++j)
        for (int n = 0; n < 4; ++n)
          sums[(16 * i + g() + n / 2 * 8) * pitch + 8 * j + 2 * t() + n % 2] = d_[i][j][n];
  }

 private:
  static __device__ int g() { return lane_of_warp() / 4; }
  static __device__ int t() { return lane_of_warp() % 4; }

  // Those of columns from 8 j on.
  template <class Eights, class Words>
  __device__ void multiply_eights(int64_t group, int j, const Eights& a, const Words& word) {
    float (&to)[kTiles][kEightsOfColumns][4] = kGroups ? part_ : d_;
    if constexpr (kE4m3) {
      for (int i = 0; i < kTiles; ++i)
        multiply_e4m3(to[i][j], {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y}, {word(0), word(1)});
    } else {
      uint32_t b[4];
      decode<kScheme, kHasZero, kRows>(word, zero_of(group, slot_ + 8 * j + g()), b);
      for (int i = 0; i < kTiles; ++i) {
        multiply_add<kRows>(to[i][j], {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y}, {b[0], b[1]});
        multiply_add<kRows>(to[i][j], {a[i][0].z, a[i][1].z, a[i][0].w, a[i][1].w}, {b[2], b[3]});
      }
    }
  }

  __device__ float zero_of(int64_t group, int64_t slot) const {
    if constexpr (!kHasZero) return 0.0f;
    return kScheme == Scheme::int4 ? p_.zero_point[group * p_.epilogue.slots + slot]
                                   : static_cast<float>(p_.integers[slot]);
  }

  __device__ void scale(int64_t group) {
    for (int j = 0; j < kEightsOfColumns; ++j) {
      if (slot_ + 8 * j >= p_.epilogue.slots) break;
      const int64_t at = group * p_.epilogue.slots + slot_ + 8 * j + 2 * t();
      for (int i = 0; i < kTiles; ++i)
        for (int n = 0; n < 4; ++n) {
          d_[i][j][n] = fma_(part_[i][j][n], kE4m3 ? kE4m3Unit : p_.scale[at + n % 2], d_[i][j][n]);
          part_[i][j][n] = 0.0f;
        }
    }
  }

  const Params& p_;
  const int64_t slot_;
  float d_[kTiles][kEightsOfColumns][4] = {};
  float part_[kTiles][kEightsOfColumns][4] = {};  // of a group
};

// ---- many rows: pieces pass through shared memory ----------------------------------------------------

constexpr int kStages = 3;
template <Scheme kScheme, DType kRows>
struct Stage {
  static constexpr int kGroupBytes = 2 * kStepBytes<kRows>, kRowsBytes = kTileRows / 16 * kGroupBytes;
  static constexpr int kWords = words_of_eight(kScheme);
  static constexpr int kPanelBytes = kEights * kWords * kWordRow;
  static constexpr int kBytes = kRowsBytes + kTilePanels * kPanelBytes;
  static constexpr int kSmem =
      kStages * kBytes > kTileRows * kTilePitch * 4 ? kStages * kBytes : kTileRows * kTilePitch * 4;

  // Where four columns from 4 c on of a word of an eight are: so that a warp's lanes read all banks.
  static __device__ int chunk(int eight, int word, int c) {
    return (word * kEights + eight) * kWordRow + 16 * (c ^ (eight & 2));
  }

  static __device__ void copy(const Params& p, int64_t group, int64_t panel, int64_t piece,
                              unsigned char* to) {
    const int64_t groups = (p.epilogue.rows + 15) / 16, panels = p.epilogue.slots / kPanel;
    for (int n = static_cast<int>(threadIdx.x); n < kRowsBytes / 16; n += kMmaThreads) {
      const int r = n / (kGroupBytes / 16), at = n % (kGroupBytes / 16);
      const bool there = group + r < groups;
      const unsigned char* const from =
          tiles_of<kRows>(p, there ? group + r : 0) + piece * kGroupBytes + 16 * at;
      ptx::cp_async<16>(to + 16 * n, from, there ? 16 : 0);
    }
    for (int n = static_cast<int>(threadIdx.x); n < kTilePanels * kPanelBytes / 16; n += kMmaThreads) {
      const int q = n / (kPanelBytes / 16), at = n % (kPanelBytes / 16), row = at / 4;
      const bool there = panel + q < panels;
      const char* const from =
          p.weight + (there ? panel + q : 0) * p.panel_bytes + piece * kPanelBytes + 16 * at;
      ptx::cp_async<16>(to + kRowsBytes + q * kPanelBytes + chunk(row / kWords, row % kWords, at % 4), from,
                        there ? 16 : 0);
    }
  }
};

template <Scheme kScheme, bool kHasZero, DType kRows>
__global__ void __launch_bounds__(kMmaThreads) multiply_tile(const Params p, unsigned columns) {
  using S = Stage<kScheme, kRows>;
  unsigned char* const smem = dynamic_smem<unsigned char>();
  const int64_t group = blockIdx.x / columns * (kTileRows / 16), panel = blockIdx.x % columns * kTilePanels;
  const int first = warp_of_block() % 4 * 2, own = warp_of_block() / 4 * 2;  // 16 rows, panels
  const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  const int64_t pieces = pieces_of(p), steps = steps_of(p);
  WarpSums<kScheme, kHasZero, kRows, 2> sums(p, (panel + own) * kPanel);
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < pieces) S::copy(p, group, panel, s, smem + s * S::kBytes);
    ptx::cp_async_commit();
  }
  for (int64_t piece = 0; piece < pieces; ++piece) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();  // the piece has landed, and nobody reads the one before it any more
    if (const int64_t next = piece + kStages - 1; next < pieces)
      S::copy(p, group, panel, next, smem + next % kStages * S::kBytes);
    ptx::cp_async_commit();
    const unsigned char* const stage = smem + piece % kStages * S::kBytes;
    for (int half = 0; half < 2 && 2 * piece + half < steps; ++half)
      sums.step(
          2 * piece + half, 2 * piece + half + 1 == steps,
          [&](int i, int lower) {
            return eight_at<kRows>(stage + (2 * (first + i) + half) * kStepBytes<kRows>, g + 8 * lower, t);
          },
          [&](int j, int i) {
            const int c = j % 2 * 8 + g;
            return *reinterpret_cast<const uint32_t*>(stage + S::kRowsBytes + (own + j / 2) * S::kPanelBytes +
                                                      S::chunk(4 * half + t, i, c / 4) + c % 4 * 4);
          });
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  float* const linear = reinterpret_cast<float*>(smem);
  sums.store(linear + 16 * first * kTilePitch + own * kPanel, kTilePitch);
  __syncthreads();
  constexpr int kQuads = kTileColumns / kQuad;
  for (int n = static_cast<int>(threadIdx.x); n < kTileRows * kQuads; n += kMmaThreads) {
    const int r = n / kQuads;
    finish_quad(p.epilogue, group * 16 + r, panel * kPanel, n % kQuads, [&](int quad, float (&h)[kQuad]) {
      for (int j = 0; j < kQuad; ++j) h[j] = linear[r * kTilePitch + quad * kQuad + j];
    });
  }
}

// ---- up to 16 rows: what counts is to read the weights -----------------------------------------------

// Each warp takes every eighth piece, or every eighth two of them where groups are that long, straight from
// memory; their sums are added in the order of the warps.
template <Scheme kScheme, bool kHasZero, DType kRows>
__global__ void __launch_bounds__(kMmaThreads) multiply_few(const Params p) {
  constexpr int kWords = words_of_eight(kScheme);
  constexpr int64_t kPanelBytes = kEights * kWords * kWordRow;
  __shared__ float linear[kMmaWarps][kFewRows * kFewPitch];
  const int64_t panel = static_cast<int64_t>(blockIdx.x) * 2, panels = p.epilogue.slots / kPanel;
  const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  constexpr bool kE4m3 = kRows == DType::u8;
  const bool is_long = kE4m3 || (kScheme == Scheme::int4 && p.group == 128);
  const int64_t steps = steps_of(p), turn = is_long ? 4 : 2;
  WarpSums<kScheme, kHasZero, kRows, 1> sums(p, panel * kPanel);
  for (int64_t begin = warp_of_block() * turn; begin < steps; begin += kMmaWarps * turn) {
    const int64_t end = begin + turn < steps ? begin + turn : steps;
    for (int64_t s = begin; s < end; ++s)
      sums.step(
          s, s + 1 == end,
          [&](int, int lower) {
            return eight_at<kRows>(tiles_of<kRows>(p, 0) + s * kStepBytes<kRows>, g + 8 * lower, t);
          },
          [&](int j, int i) {
            const int64_t q = panel + j / 2 < panels ? panel + j / 2 : panel;
            return *reinterpret_cast<const uint32_t*>(p.weight + q * p.panel_bytes + s / 2 * kPanelBytes +
                                                      ((s % 2 * 4 + t) * kWords + i) * kWordRow +
                                                      (j % 2 * 8 + g) * 4);
          });
  }
  sums.store(linear[warp_of_block()], kFewPitch);
  __syncthreads();
  constexpr int kQuads = kFewColumns / kQuad;
  for (int n = static_cast<int>(threadIdx.x); n < kFewRows * kQuads; n += kMmaThreads) {
    const int r = n / kQuads;
    finish_quad(p.epilogue, r, panel * kPanel, n % kQuads, [&](int quad, float (&h)[kQuad]) {
      for (int j = 0; j < kQuad; ++j) {
        h[j] = 0.0f;
        for (int w = 0; w < kMmaWarps; ++w) h[j] = h[j] + linear[w][r * kFewPitch + quad * kQuad + j];
      }
    });
  }
}

}  // namespace
}  // namespace fastdiff::weight_linear
