// SPDX-License-Identifier: Apache-2.0
// Kernels whose results are compared with NumPy, as C functions for ctypes. All pointers are row-major
// arrays.
#include <cooperative_groups.h>

#include "core/launch.cuh"
#include "core/ptx.cuh"
#include "core/ptx_sm90.cuh"
#include "exported.h"

namespace {

namespace cg = cooperative_groups;
namespace ptx = fastdiff::ptx;

constexpr unsigned kFull = 0xffffffffu;

// ---- one warp: matrices
// ---------------------------------------------------------------------------------------------

// Tile rows are padded by 16 bytes, as kernels do it against bank conflicts.
constexpr int kPad = 8;

// d[16, 8] += a[16, 16] b[16, 8] for 16-bit elements: A by ldmatrix, B by ldmatrix.trans from row-major
// memory.
template <bool kBfloat>
__global__ void mma_16bit(const uint16_t* a, const uint16_t* b, float* d) {
  __shared__ __align__(16) uint16_t tile_a[16][16 + kPad];
  __shared__ __align__(16) uint16_t tile_b[16][8 + kPad];
  const int lane = static_cast<int>(threadIdx.x);
  const int row = lane / 2, half = lane % 2;
  ptx::cp_async<16>(&tile_a[row][8 * half], a + 16 * row + 8 * half);
  ptx::cp_async<8>(&tile_b[row][4 * half], b + 8 * row + 4 * half);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();

  uint32_t fragment_a[4], both_b[4];
  ptx::ldmatrix_x4(fragment_a, &tile_a[lane % 16][lane / 16 * 8]);
  ptx::ldmatrix_x4_trans(both_b, &tile_b[lane % 16][0]);
  const uint32_t fragment_b[2] = {both_b[0], both_b[1]};

  const int g = lane / 4, t = lane % 4;
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[8 * (g + 8 * (i / 2)) + 2 * t + i % 2];
  if constexpr (kBfloat)
    ptx::mma_m16n8k16_bf16(sum, fragment_a, fragment_b);
  else
    ptx::mma_m16n8k16_f16(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[8 * (g + 8 * (i / 2)) + 2 * t + i % 2] = sum[i];
}

// d[16, 8] += a[16, 32] b[32, 8], the fragments gathered element by element as the PTX manual numbers them.
__global__ void mma_8bit(const int8_t* a, const int8_t* b, int* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t fragment_a[4] = {}, fragment_b[2] = {};
  for (int i = 0; i < 16; ++i) {
    const int row = i / 4 % 2 == 0 ? g : g + 8, column = 4 * t + i % 4 + (i < 8 ? 0 : 16);
    fragment_a[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(a[32 * row + column])) << 8 * (i % 4);
  }
  for (int i = 0; i < 8; ++i) {
    const int row = 4 * t + i % 4 + (i < 4 ? 0 : 16);
    fragment_b[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(b[8 * row + g])) << 8 * (i % 4);
  }
  int sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[8 * (g + 8 * (i / 2)) + 2 * t + i % 2];
  ptx::mma_m16n8k32_s8(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[8 * (g + 8 * (i / 2)) + 2 * t + i % 2] = sum[i];
}

// out[2, 4, 32]: the registers that ldmatrix and ldmatrix.trans give for the matrices in[4, 8, 8].
__global__ void load_matrices(const uint16_t* in, uint32_t* out) {
  __shared__ __align__(16) uint16_t tile[4 * 8 * 8];
  const unsigned lane = threadIdx.x;
  *reinterpret_cast<uint4*>(tile + 8 * lane) = *reinterpret_cast<const uint4*>(in + 8 * lane);
  __syncwarp();
  uint32_t r[4], transposed[4];
  ptx::ldmatrix_x4(r, tile + 8 * lane);
  ptx::ldmatrix_x4_trans(transposed, tile + 8 * lane);
  for (int i = 0; i < 4; ++i) {
    out[32 * i + lane] = r[i];
    out[128 + 32 * i + lane] = transposed[i];
  }
}

// out[3, n]: x rounded to pairs of fp16 and of bf16 with 1, and 2^x.
__global__ void pairs_and_powers(const float* x, uint32_t* out, int n) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = ptx::pack_f16(x[i], 1.0f);
  out[n + i] = ptx::pack_bf16(1.0f, x[i]);
  out[2 * n + i] = __float_as_uint(ptx::exp2_approx(x[i]));
}

// ---- one warpgroup: wgmma ------------------------------------------------------------------------------

// d[64, 128] += a[64, 64] b[128, 64]^T for bytes. B comes in the swizzled order; without `add` d = a b^T.
template <class Sum>
__global__ void warpgroup_product(const uint8_t* a, const uint8_t* b, Sum* d, int add) {
  __shared__ __align__(8) uint64_t landed;
  uint8_t* const rows = fastdiff::dynamic_smem<uint8_t>() + 1024 -
                        ptx::shared_address(fastdiff::dynamic_smem<uint8_t>()) % 1024;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = 16 * warp + lane / 4, t = lane % 4;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&landed, 1);
    ptx::mbarrier_init_done();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_expect(&landed, 128 * 64);
    for (int half = 0; half < 2; ++half) ptx::bulk_copy(rows + half * 4096, b + half * 4096, 4096, &landed);
  }
  Sum sum[64];
  for (int i = 0; i < 64; ++i) sum[i] = d[(g + 8 * (i / 2 % 2)) * 128 + i / 4 * 8 + 2 * t + i % 2];
  ptx::mbarrier_wait(&landed, false);
  __syncwarp();
  ptx::wgmma_fence();
  for (int step = 0; step < 2; ++step) {
    uint32_t fragment[4];
    for (int i = 0; i < 4; ++i)
      fragment[i] =
          *reinterpret_cast<const uint32_t*>(a + (g + 8 * (i % 2)) * 64 + 32 * step + 16 * (i / 2) + 4 * t);
    ptx::wgmma_m64n128k32(sum, fragment, ptx::swizzled_rows(rows + 32 * step), add != 0 || step > 0);
    ptx::wgmma_commit();
  }
  ptx::wgmma_wait<0>();
  for (int i = 0; i < 64; ++i) d[(g + 8 * (i / 2 % 2)) * 128 + i / 4 * 8 + 2 * t + i % 2] = sum[i];
}

// ---- blocks: reductions and a tiled product
// -------------------------------------------------------------------------

// y[block] = the sum of the block's 256 elements of x, zero past n.
__global__ void block_sum(const float* x, float* y, int n) {
  constexpr unsigned kWarps = 256 / 32;
  __shared__ float partial[kWarps];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float sum = i < n ? __ldg(x + i) : 0.0f;
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(kFull, sum, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < kWarps ? partial[threadIdx.x] : 0.0f;
  for (int d = kWarps / 2; d > 0; d /= 2) sum += __shfl_down_sync(kFull, sum, static_cast<unsigned>(d));
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// out[9, 32], for 32 lanes of x: see test_warp_collectives.
__global__ void collectives(const int* x, int* out) {
  const int lane = static_cast<int>(threadIdx.x), value = x[lane];
  const auto tile = cg::tiled_partition<8>(cg::this_thread_block());
  int scan = value;
  for (unsigned d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(kFull, scan, d);
    if (lane >= static_cast<int>(d)) scan += below;
  }
  out[lane] = scan;
  out[32 + lane] = __shfl_sync(kFull, value, lane + 3, 16);
  out[64 + lane] = __shfl_down_sync(kFull, value, 2, 8);
  out[96 + lane] = static_cast<int>(__ballot_sync(kFull, value > 0));
  out[128 + lane] = __reduce_max_sync(kFull, value);
  out[160 + lane] = tile.shfl_xor(value, 5);
  out[192 + lane] = static_cast<int>(__match_any_sync(kFull, value % 3));
  out[224 + lane] = __syncthreads_count(value > 0);
  out[256 + lane] = __any_sync(kFull, value > 8) + 2 * __all_sync(kFull, value > -100);
}

// histogram[bins] of x[n], first within the block, then over blocks.
__global__ void histogram(const unsigned* x, unsigned* counts, int n, unsigned bins) {
  auto* mine = fastdiff::dynamic_smem<unsigned>();
  for (unsigned b = threadIdx.x; b < bins; b += blockDim.x) mine[b] = 0;
  __syncthreads();
  const int stride = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += stride)
    atomicAdd(mine + x[i], 1u);
  __syncthreads();
  for (unsigned b = threadIdx.x; b < bins; b += blockDim.x) atomicAdd(counts + b, mine[b]);
}

// c[m, n] = a[m, k] b[k, n] in 16 x 16 tiles; the next pair of tiles is under way while one is multiplied.
constexpr int kTile = 16;

__global__ void matmul(const float* a, const float* b, float* c, int m, int n, int k) {
  __shared__ float tiles[2][2][kTile][kTile];  // [stage][a, b][row][column]
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int row = static_cast<int>(blockIdx.y) * kTile + y, column = static_cast<int>(blockIdx.x) * kTile + x;
  const int steps = (k + kTile - 1) / kTile;

  const auto fetch = [&](int step) {
    const int depth_a = step * kTile + x, depth_b = step * kTile + y;
    const bool has_a = row < m && depth_a < k, has_b = column < n && depth_b < k;
    ptx::cp_async<4>(&tiles[step % 2][0][y][x], has_a ? a + row * k + depth_a : a, has_a ? 4 : 0);
    ptx::cp_async<4>(&tiles[step % 2][1][y][x], has_b ? b + depth_b * n + column : b, has_b ? 4 : 0);
  };

  float sum = 0.0f;
  fetch(0);
  ptx::cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    ptx::cp_async_commit();  // empty after the last tile, so that the wait below is the same for all
    ptx::cp_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < kTile; ++i) sum = __fmaf_rn(tiles[step % 2][0][y][i], tiles[step % 2][1][i][x], sum);
    __syncthreads();
  }
  if (row < m && column < n) c[row * n + column] = sum;
}

// Spends the seed: the order in which threads and blocks come.
__global__ void arrival(int* counter, int* order) {
  order[atomicAdd(counter, 1)] = static_cast<int>(threadIdx.x);
}

// Lanes 0, 1 and 2 wait for each other in a ring.
__global__ void ring() {
  constexpr unsigned kMasks[] = {0b011, 0b110, 0b101};
  __syncwarp(kMasks[threadIdx.x]);
}

// Waits for twice the bytes that it copies.
__global__ void too_few_bytes(const uint8_t* x) {
  __shared__ __align__(16) uint8_t tile[32];
  __shared__ __align__(8) uint64_t landed;
  ptx::mbarrier_init(&landed, 1);
  ptx::mbarrier_init_done();
  ptx::mbarrier_expect(&landed, 64);
  ptx::bulk_copy(tile, x, 32, &landed);
  ptx::mbarrier_wait(&landed, false);
}

// All threads but the first leave before the barrier.
__global__ void leave_early() {
  if (threadIdx.x == 0) __syncthreads();
}

unsigned tiles_of(int size) {
  return fastdiff::blocks_for(size, kTile);
}

}  // namespace

EXPORT(run_mma_f16, (const uint16_t* a, const uint16_t* b, float* d)) {
  return error_of([=] { fastdiff::launch(mma_16bit<false>, 1, 32, 0, nullptr, a, b, d); });
}
EXPORT(run_mma_bf16, (const uint16_t* a, const uint16_t* b, float* d)) {
  return error_of([=] { fastdiff::launch(mma_16bit<true>, 1, 32, 0, nullptr, a, b, d); });
}
EXPORT(run_mma_s8, (const int8_t* a, const int8_t* b, int* d)) {
  return error_of([=] { fastdiff::launch(mma_8bit, 1, 32, 0, nullptr, a, b, d); });
}
EXPORT(run_wgmma_s8, (const uint8_t* a, const uint8_t* b, int* d, int add)) {
  return error_of(
      [=] { fastdiff::launch(warpgroup_product<int>, 1, 128, 1024 + 128 * 64, nullptr, a, b, d, add); });
}
EXPORT(run_wgmma_e4m3, (const uint8_t* a, const uint8_t* b, float* d, int add)) {
  return error_of(
      [=] { fastdiff::launch(warpgroup_product<float>, 1, 128, 1024 + 128 * 64, nullptr, a, b, d, add); });
}
EXPORT(run_load_matrices, (const uint16_t* in, uint32_t* out)) {
  return error_of([=] { fastdiff::launch(load_matrices, 1, 32, 0, nullptr, in, out); });
}
EXPORT(run_pairs_and_powers, (const float* x, uint32_t* out, int n)) {
  return error_of(
      [=] { fastdiff::launch(pairs_and_powers, 1, static_cast<unsigned>(n), 0, nullptr, x, out, n); });
}
EXPORT(run_block_sum, (const float* x, float* y, int n)) {
  return error_of(
      [=] { fastdiff::launch(block_sum, fastdiff::blocks_for(n, 256), 256, 0, nullptr, x, y, n); });
}
EXPORT(run_collectives, (const int* x, int* out)) {
  return error_of([=] { fastdiff::launch(collectives, 1, 32, 0, nullptr, x, out); });
}
EXPORT(run_histogram, (const unsigned* x, unsigned* counts, int n, unsigned bins)) {
  return error_of(
      [=] { fastdiff::launch(histogram, 3, 64, bins * sizeof(unsigned), nullptr, x, counts, n, bins); });
}
EXPORT(run_matmul, (const float* a, const float* b, float* c, int m, int n, int k)) {
  return error_of([=] {
    fastdiff::launch(matmul, dim3(tiles_of(n), tiles_of(m)), dim3(kTile, kTile), 0, nullptr, a, b, c, m, n,
                     k);
  });
}
EXPORT(run_arrival, (int* order, int n)) {
  return error_of([=] {
    int counter = 0;
    fastdiff::launch(arrival, 1, static_cast<unsigned>(n), 0, nullptr, &counter, order);
  });
}
EXPORT(run_ring, ()) {
  return error_of([] { fastdiff::launch(ring, 1, 3, 0, nullptr); });
}
EXPORT(run_too_few_bytes, (const uint8_t* x)) {
  return error_of([=] { fastdiff::launch(too_few_bytes, 1, 1, 0, nullptr, x); });
}
EXPORT(run_leave_early, (unsigned threads)) {
  return error_of([=] { fastdiff::launch(leave_early, 1, threads, 0, nullptr); });
}
// What launch() and the runtime refuse; the kernel does not run.
EXPORT(run_shape, (unsigned x, unsigned y, unsigned threads, int dynamic_bytes)) {
  return error_of([=] {
    fastdiff::launch(arrival, dim3(x, y), threads, static_cast<size_t>(dynamic_bytes), nullptr, nullptr,
                     nullptr);
  });
}
EXPORT(run_blocks_for, (int64_t work)) {
  return error_of([=] { fastdiff::blocks_for(work, 1); });
}
