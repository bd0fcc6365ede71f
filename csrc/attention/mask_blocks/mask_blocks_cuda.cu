// SPDX-License-Identifier: Apache-2.0
// mask_blocks on CUDA: a warp for each block. A lane makes the words of four keys, which it reads at once
// where the mask's layout allows: half a warp reads a row of 64 keys.
#include "attention/mask_blocks/mask_blocks_math.h"
#include "core/launch.cuh"

namespace fastdiff::mask_blocks {
namespace {

constexpr int kWarp = 32, kWarps = 4;
constexpr int kQuad = 4;  // keys
constexpr unsigned kAllLanes = 0xffffffffu;

// Four keys of a query, a byte for each; those that are not there are 0.
template <bool kAligned>
__device__ __forceinline__ uint32_t load_quad(const uint8_t* mask, int64_t element, int64_t keys) {
  if (kAligned && keys >= kQuad) return *reinterpret_cast<const uint32_t*>(mask);
  uint32_t quad = 0;
  for (int j = 0; j < kQuad && j < keys; ++j) quad |= uint32_t{mask[j * element]} << 8 * j;
  return quad;
}

template <bool kAligned>
__global__ void __launch_bounds__(kWarp* kWarps) write_blocks(const Params p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (block >= p.numel()) return;  // the whole warp
  const int64_t c = block % p.columns, r = block / p.columns % p.rows, list = block / p.columns / p.rows;
  const int64_t b = list / p.heads, h = list % p.heads;
  const int64_t queries = p.queries - r * p.block_q, keys = p.keys - c * p.block_k;
  const auto* const mask = static_cast<const uint8_t*>(p.mask.data) + p.mask.at(b, h, r * p.block_q) +
                           c * p.block_k * p.mask.element;
  uint32_t* const bits = p.bits.data + block * p.bits.block;
  bool sees = false, misses = false;
  const int quads = p.block_k / kQuad;
  for (int n = lane; n < quads * p.words; n += kWarp) {
    const int first = n % quads * kQuad, w = n / quads;
    // The last word of a block is not whole if block_q is no multiple of 32.
    const int64_t left = (queries < p.block_q ? queries : p.block_q) - 32 * w;
    const uint8_t* const quad = mask + 32 * w * p.mask.row + first * p.mask.element;
    uint32_t word[kQuad] = {};
#pragma unroll 8
    for (int q = 0; q < 32 && q < left; ++q) {
      const uint32_t four = load_quad<kAligned>(quad + q * p.mask.row, p.mask.element, keys - first);
      for (int j = 0; j < kQuad; ++j) word[j] |= uint32_t{(four >> 8 * j & 0xff) != 0} << q;
    }
    for (int j = 0; j < kQuad; ++j) {
      bits[(first + j) * p.bits.key + w * p.bits.word] = word[j];
      sees = sees || word[j] != 0;
      misses = misses || (first + j < keys && word[j] != bits_of(left));
    }
  }
  sees = __any_sync(kAllLanes, sees);
  misses = __any_sync(kAllLanes, misses);
  if (lane == 0)
    static_cast<uint8_t*>(p.kinds.data)[p.kinds.at(b, h, r) + c * p.kinds.element] = kind_of(sees, misses);
}

}  // namespace

void launch_cuda(const Params& p, int device, void* stream) {
  const OnDevice on(device);
  bool aligned = p.mask.element == 1 && reinterpret_cast<uintptr_t>(p.mask.data) % kQuad == 0;
  for (const int64_t stride : {p.mask.sample, p.mask.head, p.mask.row})
    aligned = aligned && stride % kQuad == 0;
  launch(aligned ? &write_blocks<true> : &write_blocks<false>, dim3(blocks_for(p.numel(), kWarps)),
         dim3(kWarp * kWarps), 0, static_cast<cudaStream_t>(stream), p);
}

}  // namespace fastdiff::mask_blocks
