// SPDX-License-Identifier: Apache-2.0
// Tiles of 16-bit tokens in shared memory, and their products on the tensor cores.
//
// Fragments are those of core/ptx.cuh: lane l has, of a [16][8] tile of results, the rows g = l / 4 and g + 8
// and the columns 2 t and 2 t + 1, t = l % 4. Two neighbouring tiles of results, rounded to 16 bits, are the
// fragment of a [16][16] first factor as they stand: that is how a product of scores with tokens begins.
#pragma once

#include <type_traits>

#include "attention/plan.cuh"
#include "core/ptx.cuh"

namespace fastdiff::attention {
namespace {

inline constexpr int kWarps = 4, kWarpRows = 16,
                     kTileRows = kWarps * kWarpRows;  // of a block's stationary tile
inline constexpr int kMmaThreads = 32 * kWarps;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int warp_of_block() {
  return static_cast<int>(threadIdx.x) / 32;
}
__device__ __forceinline__ int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % 32;
}

// ---- tiles [rows][kDim] ----------------------------------------------------------------------------------

// Where chunk c of row r is: chunks are 8 elements, 16 bytes. Any 8 rows from a multiple of 8 on have their
// chunks c in 8 different places of the banks, for every kDim that is a multiple of 16.
template <int kDim>
struct Swizzle {
  static constexpr int kChunks = kDim / 8;
  static constexpr int kBits = kChunks % 8 == 0 ? 3 : kChunks % 4 == 0 ? 2 : 1;
  static constexpr int kMask = (1 << kBits) - 1;
  static_assert(kChunks % 2 == 0);

  static __device__ __forceinline__ int of_row(int r) { return r >> (3 - kBits) & kMask; }
};
template <int kDim>
__device__ __forceinline__ int chunk_at(int r, int c) {
  return r * kDim + 8 * (c ^ Swizzle<kDim>::of_row(r));
}

// chunk_at(first + r, 2 k + odd) for first a multiple of 8, so put that what differs between lanes is the
// same for all `first`, and for four k or more: it stays in few registers.
template <int kDim>
__device__ __forceinline__ int chunk_of_lane(int first, int r, int k, int odd) {
  using S = Swizzle<kDim>;
  return first * kDim + 8 * (2 * k & ~S::kMask) +
         (r * kDim + 8 * ((odd ^ S::of_row(r)) ^ (2 * k & S::kMask)));
}

// Copies the rows of `count` tokens into a tile, asynchronously; zeros in the rest of
// `rows` rows and of kDim.
template <int kDim>
__device__ __forceinline__ void copy_tokens(const Heads& t, const Rows& from, int count, int rows, int dim,
                                            uint16_t* tile) {
  constexpr unsigned kChunks = kDim / 8;
  const auto* const data = static_cast<const uint16_t*>(t.data);
#pragma unroll 4
  for (unsigned n = threadIdx.x; n < rows * kChunks; n += kMmaThreads) {
    const int r = static_cast<int>(n / kChunks), c = static_cast<int>(n % kChunks);
    const bool there = r < count && 8 * c < dim;
    ptx::cp_async<16>(tile + chunk_at<kDim>(r, c), data + (there ? place_of(t, from, r) + 8 * c : 0),
                      there ? 16 : 0);
  }
}

// Copies, asynchronously, word `word` of the bits of a key, at place k of its block; zero if it is not
// `there`.
__device__ __forceinline__ void copy_word(const Plan& plan, const uint32_t* bits, int k, int word, bool there,
                                          uint32_t* to) {
  const bool valid = there && word < plan.words;
  ptx::cp_async<4>(to, bits + (valid ? int64_t{k} * plan.words + word : 0), valid ? 4 : 0);
}

// Whether copy_tokens may have it.
inline bool has_chunks(const Heads& t, int64_t samples, int64_t heads) {
  const auto whole = [](int64_t size, int64_t stride) { return size <= 1 || stride % 8 == 0; };
  return size_of(t.dtype) == 2 && t.element == 1 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         whole(samples, t.sample) && whole(heads, t.head) && whole(t.tokens, t.row);
}

// body(kDim) with the narrowest tiles that hold a head_dim.
template <class Body>
void with_wide_dim(int head_dim, const Body& body) {
  if (head_dim <= 32) return body(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return body(std::integral_constant<int, 64>{});
  if (head_dim <= 80) return body(std::integral_constant<int, 80>{});
  if (head_dim <= 96) return body(std::integral_constant<int, 96>{});
  if (head_dim <= 128) return body(std::integral_constant<int, 128>{});
  if (head_dim <= 192) return body(std::integral_constant<int, 192>{});
  body(std::integral_constant<int, 256>{});
}

// The 16 x 16 elements at (row, 16 k), as ldmatrix wants to be told: first factors have their rows in rows,
// and so do second factors, transposed, of which a row is one of the sum.
template <int kDim>
__device__ __forceinline__ const uint16_t* rows_at(const uint16_t* tile, int row, int k) {
  const int lane = lane_of_warp();
  return tile + chunk_of_lane<kDim>(row, lane % 16, k, lane / 16);
}
// Of second factors a row of which is a column of the product.
template <int kDim>
__device__ __forceinline__ const uint16_t* columns_at(const uint16_t* tile, int row, int k) {
  const int lane = lane_of_warp();
  return tile + chunk_of_lane<kDim>(row, lane % 8 + lane / 16 * 8, k, lane / 8 % 2);
}

// ---- products --------------------------------------------------------------------------------------------

template <bool kBfloat>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  if constexpr (kBfloat)
    ptx::mma_m16n8k16_bf16(d, a, b);
  else
    ptx::mma_m16n8k16_f16(d, a, b);
}

template <bool kBfloat>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (kBfloat)
    return ptx::pack_bf16(low, high);
  else
    return ptx::pack_f16(low, high);
}

// Two tiles of results as a first factor.
template <bool kBfloat>
__device__ __forceinline__ void as_factor(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4]) {
  a[0] = pack<kBfloat>(left[0], left[1]);
  a[1] = pack<kBfloat>(left[2], left[3]);
  a[2] = pack<kBfloat>(right[0], right[1]);
  a[3] = pack<kBfloat>(right[2], right[3]);
}

template <int kTiles>
__device__ __forceinline__ void clear(float (&tiles)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) tiles[n][e] = 0.0f;
}

// scores[16 rows][kColumns] = rows . columns; factor(k, a) gives the rows' k-th fragment. Only the 16s of
// columns that begin before `count`, if not kWhole; the others are 0.
template <bool kBfloat, bool kWhole, int kDim, int kTiles, class Factor>
__device__ __forceinline__ void multiply_columns(const Factor& factor, const uint16_t* columns, int count,
                                                 float (&scores)[kTiles][4]) {
  clear(scores);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[4];
    factor(k, a);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      if (!kWhole && 8 * n >= count) continue;
      uint32_t b[4];
      ptx::ldmatrix_x4(b, columns_at<kDim>(columns, 8 * n, k));
      multiply_add<kBfloat>(scores[n], a, b[0], b[1]);
      multiply_add<kBfloat>(scores[n + 1], a, b[2], b[3]);
    }
  }
}

// sums[16 rows][kDim] += weights [16 rows][kColumns] times the tokens of a tile, as above.
template <bool kBfloat, bool kWhole, int kDim, int kTiles>
__device__ __forceinline__ void accumulate_rows(const float (&weights)[kTiles][4], const uint16_t* tokens,
                                                int count, float (&sums)[kDim / 8][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    if (!kWhole && 8 * n >= count) continue;
    uint32_t a[4];
    as_factor<kBfloat>(weights[n], weights[n + 1], a);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, rows_at<kDim>(tokens, 8 * n, k));
      multiply_add<kBfloat>(sums[2 * k], a, b[0], b[1]);
      multiply_add<kBfloat>(sums[2 * k + 1], a, b[2], b[3]);
    }
  }
}

// Over the four lanes that have the same rows, in each of them.
__device__ __forceinline__ float quad_highest(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float quad_total(float x) {
  x = x + __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Rounds a warp's [16][kDim] sums, rows times their factors, and stores the first `count` rows from element
// `at` on. `rows` is shared memory for 16 rows, which only this warp uses.
template <bool kBfloat, int kDim>
__device__ void store_rows(const Heads& t, int64_t at, int count, int dim, const float (&sums)[kDim / 8][4],
                           const float (&factors)[2], uint16_t* rows) {
  constexpr int kChunks = kDim / 8;
  const int lane = lane_of_warp(), g = lane / 4, pair = lane % 4;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<uint32_t*>(rows + chunk_at<kDim>(g + 8 * i, c) + 2 * pair) =
          pack<kBfloat>(sums[c][2 * i] * factors[i], sums[c][2 * i + 1] * factors[i]);
  __syncwarp();
  auto* const data = static_cast<uint16_t*>(t.data) + at;
  const bool whole = t.element == 1 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && t.row % 8 == 0;
  for (int n = lane; n < count * kChunks; n += 32) {
    const int r = n / kChunks, c = n % kChunks;
    if (8 * c >= dim) continue;
    const uint4 chunk = *reinterpret_cast<const uint4*>(rows + chunk_at<kDim>(r, c));
    if (whole) {
      *reinterpret_cast<uint4*>(data + r * t.row + 8 * c) = chunk;
      continue;
    }
    const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int e = 0; e < 8; ++e)
      data[r * t.row + (8 * c + e) * t.element] = static_cast<uint16_t>(pairs[e / 2] >> (e % 2 * 16));
  }
}

}  // namespace
}  // namespace fastdiff::attention
