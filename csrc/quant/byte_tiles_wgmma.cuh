// SPDX-License-Identifier: Apache-2.0
// Products of rows of bytes with packed panels by the warpgroups of Hopper (wgmma, sm_90a): int8 with exact
// sums, e4m3 in float32.
//
// What is computed is the transpose, D^T = W q^T. So the weights are the factor that wgmma takes from
// registers: they go there as they are packed, a panel being the 16 columns of a warp, and formats that are
// decoded in registers can go the same way. Rows are the factor in shared memory; in scratch memory
// (panels.h) each 128 by 64 of them already lie in the swizzled order in which wgmma reads shared memory.
//
// A block has 8 panels and 128 or 256 rows. One thread copies pieces of both, 128 elements along K at a time,
// four such stages ahead; two warpgroups multiply four panels each and give a stage back when they are done
// with it.
//
// Floor on an H200, by its data sheet: 2 M N K / 1979 TOP/s. A stage of 256 rows is 1024 cycles of the tensor
// cores and 48 KiB from the second-level cache, which 132 blocks together read at 10 TB/s if nothing else
// limits them: the cache, with about 6, comes first, at 60 % of that floor. Two blocks that share rows
// (multicast) would ask for 7.
#pragma once

#include <type_traits>

#include "core/ptx_sm90.cuh"
#include "core/walk.cuh"
#include "quant/panels.h"

namespace fastdiff::quant {
namespace {

constexpr int kWideThreads = 384, kMultiplyingThreads = 256, kMultiplyingWarps = kMultiplyingThreads / 32;
// Of a thread: what the launch gives to all, and what the warpgroups that multiply have of the other's.
constexpr int kRegisters = 168, kCopyingRegisters = 40, kMultiplyingRegisters = 232;
static_assert(kCopyingRegisters * (kWideThreads - kMultiplyingThreads) +
                  kMultiplyingRegisters * kMultiplyingThreads <=
              kRegisters * kWideThreads);
constexpr int kWidePanels = 8, kWideColumns = kWidePanels * kPanel;
constexpr int kDeep = kWidePieces, kSteps = kDeep * kPiece / 32;  // pieces of a stage, products along K
constexpr int kWideStages = 4;
constexpr int kPanelBytes = kDeep * kPieceBytes, kHalfBytes = kDeep * kPiece * kWideRows;
constexpr int kWidePitch = kWideColumns + 4;  // sums; rows 4 banks apart
constexpr int kAlignment = 1024;              // of the swizzled order
template <int kHalves>
constexpr int kWideStageBytes = kWidePanels * kPanelBytes + kHalves * kHalfBytes;
template <int kHalves>
constexpr int kWideSmem = kWideStages * kWideStageBytes<kHalves> + kAlignment;
static_assert(kWideRows * kWidePitch * 4 <= kWideStages * kWideStageBytes<1>);

// Where element k of row m is in scratch memory.
__device__ __forceinline__ int64_t swizzled_place(int64_t pieces, int64_t m, int64_t k) {
  const int64_t row = (m / kWideRows * wide_pieces(pieces) + k / kPiece) * kWideRows + m % kWideRows;
  return row * kPiece + 16 * (k % kPiece / 16 ^ (m >> 1 & 3)) + k % 16;
}

struct WideFactors {
  const uint8_t* q;  // at swizzled_place()
  const char* weight;
  int64_t rows, panels, pieces, panel_bytes;
};

#if FASTDIFF_SM90A

// What comes and goes: stages filled, stages given back; and meetings of the warps that multiply.
struct Barriers {
  uint64_t full[kWideStages], free[kWideStages], meeting;

  __device__ void begin() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kWideStages; ++s) {
        ptx::mbarrier_init(full + s, 1);
        ptx::mbarrier_init(free + s, kMultiplyingWarps);
      }
      ptx::mbarrier_init(&meeting, kMultiplyingThreads);
      ptx::mbarrier_init_done();
    }
    __syncthreads();
  }
};

// As many as there are, up to `most`.
__device__ __forceinline__ int some(int64_t there, int most) {
  return there < most ? static_cast<int>(there) : most;
}

template <int kHalves>
__device__ void copy_stages(const WideFactors& f, int64_t half, int halves, int64_t panel,
                            unsigned char* smem, Barriers& barriers) {
  const int64_t stages = wide_pieces(f.pieces) / kDeep;
  const int panels = some(f.panels - panel, kWidePanels), rows_bytes = halves * kHalfBytes;
  for (int64_t n = 0; n < stages; ++n) {
    const int slot = static_cast<int>(n % kWideStages);
    if (n >= kWideStages) ptx::mbarrier_wait(barriers.free + slot, n / kWideStages % 2 == 0);
    unsigned char* const to = smem + slot * kWideStageBytes<kHalves>;
    const int bytes = some(f.pieces - kDeep * n, kDeep) * kPieceBytes;
    uint64_t* const full = barriers.full + slot;
    ptx::mbarrier_expect(full, panels * bytes + rows_bytes);
    for (int p = 0; p < panels; ++p)
      ptx::bulk_copy(to + p * kPanelBytes, f.weight + (panel + p) * f.panel_bytes + n * kPanelBytes, bytes,
                     full);
    for (int at = 0; at < rows_bytes; at += kHalfBytes)
      ptx::bulk_copy(to + kWidePanels * kPanelBytes + at,
                     f.q + ((half + at / kHalfBytes) * stages + n) * kHalfBytes, kHalfBytes, full);
  }
}

// The sums of a warpgroup's 64 columns with 128 rows, as wgmma spreads them over lanes.
template <class Sum>
using WideSums = Sum[64];

template <class Sum>
__device__ __forceinline__ void multiply_rows(const unsigned char* rows, const uint32_t (&a)[kSteps][4],
                                              bool add, WideSums<Sum>& sums) {
  ptx::wgmma_fence();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const unsigned char* const from = rows + s / 2 * (kWideRows * kPiece) + s % 2 * 32;
    ptx::wgmma_m64n128k32(sums, a[s], ptx::swizzled_rows(from), add || s > 0);
  }
  ptx::wgmma_commit();
}

// Of e4m3 the sums of a stage are added in float32: the tensor cores add with 13 bits behind the point of
// the largest.
template <int kHalves>
__device__ __forceinline__ void multiply_stage(const unsigned char* rows, int halves,
                                               const uint32_t (&a)[kSteps][4],
                                               WideSums<float> (&sums)[kHalves]) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    if (h >= halves) break;
    WideSums<float> part;
    multiply_rows(rows + h * kHalfBytes, a, false, part);
    ptx::wgmma_wait<0>();
    ptx::wgmma_hold(part);
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[h][i] = sums[h][i] + part[i];
  }
}

template <int kHalves>
__device__ __forceinline__ void multiply_stage(const unsigned char* rows, int halves,
                                               const uint32_t (&a)[kSteps][4],
                                               WideSums<int> (&sums)[kHalves]) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h) ptx::wgmma_hold(sums[h]);
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
    if (h < halves) multiply_rows(rows + h * kHalfBytes, a, true, sums[h]);
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int h = 0; h < kHalves; ++h) ptx::wgmma_hold(sums[h]);
}

// So many pieces of the warp's panel as fragments; for the others zeros. Rows g and g + 8 of a fragment are
// columns 2 g and 2 g + 1: neighbours in memory, and a warp reads 256 bytes in a row.
__device__ __forceinline__ void read_panel(const unsigned char* panel, int pieces, uint32_t (&a)[kSteps][4]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const auto pair = [&](int quadruple) {
      return s < pieces * (kSteps / kDeep)
                 ? *reinterpret_cast<const uint2*>(panel + (8 * s + quadruple) * (4 * kPanel) + 8 * g)
                 : uint2{0, 0};
    };
    const uint2 low = pair(t), high = pair(t + 4);
    a[s][0] = low.x, a[s][1] = low.y, a[s][2] = high.x, a[s][3] = high.y;
    ptx::wgmma_hold(a[s]);
  }
}

// to [128][kWidePitch], from the warp's first column on.
template <class Sum>
__device__ __forceinline__ void spread_sums(const WideSums<Sum>& sums, Sum* to) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 64; ++i) to[(i / 4 * 8 + 2 * t + i % 2) * kWidePitch + 2 * g + i / 2 % 2] = sums[i];
}

// Sums of 8 panels with kHalves times 128 rows; finish(r, quad, sums) gets of row r, counted from the first,
// the quad-th four columns and all its sums. Sum: int for int8, float for e4m3.
template <class Sum, int kHalves, class Finish>
__device__ void multiply_wide(const WideFactors& f, int64_t half, int64_t panel, const Finish& finish) {
  __shared__ __align__(8) Barriers barriers;
  unsigned char* const dynamic = dynamic_smem<unsigned char>();
  unsigned char* const smem = dynamic + (kAlignment - ptx::shared_address(dynamic) % kAlignment) % kAlignment;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int halves = some((f.rows + kWideRows - 1) / kWideRows - half, kHalves);
  barriers.begin();
  if (thread >= kMultiplyingThreads) {
    ptx::leave_registers<kCopyingRegisters>();
    if (thread == kMultiplyingThreads) copy_stages<kHalves>(f, half, halves, panel, smem, barriers);
    return;
  }
  ptx::take_registers<kMultiplyingRegisters>();
  WideSums<Sum> sums[kHalves] = {};
  for (int64_t n = 0; kDeep * n < f.pieces; ++n) {
    const int slot = static_cast<int>(n % kWideStages);
    const unsigned char* const stage = smem + slot * kWideStageBytes<kHalves>;
    ptx::mbarrier_wait(barriers.full + slot, n / kWideStages % 2 == 1);
    __syncwarp();  // for wgmma, whose lanes have to come together
    uint32_t a[kSteps][4];
    const int pieces = panel + warp < f.panels ? some(f.pieces - kDeep * n, kDeep) : 0;
    read_panel(stage + warp * kPanelBytes, pieces, a);
    multiply_stage<kHalves>(stage + kWidePanels * kPanelBytes, halves, a, sums);
    __syncwarp();
    if (thread % 32 == 0) ptx::mbarrier_arrive(barriers.free + slot);
  }
  bool odd = false;
  const auto meet = [&] {
    ptx::mbarrier_arrive(&barriers.meeting);
    ptx::mbarrier_wait(&barriers.meeting, odd);
    odd = !odd;
  };
  Sum* const spread = reinterpret_cast<Sum*>(smem);
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    if (h >= halves) break;
    meet();  // nobody reads what is overwritten any more
    spread_sums(sums[h], spread + warp * kPanel);
    meet();
    constexpr int kQuads = kWideColumns / kQuad;
    for (int n = thread; n < kWideRows * kQuads; n += kMultiplyingThreads)
      finish(h * kWideRows + n / kQuads, n % kQuads, spread + n / kQuads * kWidePitch);
  }
}

#endif

// run(halves, grid, columns): tiles of 256 rows where there are enough of them for all multiprocessors, else
// of 128.
template <class Run>
void launch_wide(int64_t rows, int64_t slots, const Run& run) {
  const unsigned columns = blocks_for(slots, kWideColumns);
  const auto tiles = [&](int halves) {
    return (rows + halves * kWideRows - 1) / (halves * kWideRows) * columns;
  };
  if (tiles(2) >= multiprocessors("launch"))
    return run(std::integral_constant<int, 2>(), dim3(blocks_for(tiles(2), 1)), columns);
  run(std::integral_constant<int, 1>(), dim3(blocks_for(tiles(1), 1)), columns);
}

}  // namespace
}  // namespace fastdiff::quant
