// SPDX-License-Identifier: Apache-2.0
// PTX instructions as functions: asynchronous copies, ldmatrix, and the tensor cores. Needs sm_80. Only this
// header and ptx_sm90.cuh contain inline PTX; under the emulator the same functions come from its simt/ptx.h.
//
// Every function that says "warp" must be called by all 32 lanes together.
#pragma once

#include "core/launch.cuh"

#if !defined(__CUDACC__)
#include "simt/ptx.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "core/ptx.cuh needs sm_80: leave its rooms out of builds for older architectures"
#endif

namespace fastdiff::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- cp.async: global to shared memory, past the registers
// -----------------------------------------------------

// Copies kBytes (4, 8 or 16) to `shared` from `global`, both aligned to kBytes; of them only the first
// `valid` are read, the others become zero. Lands when cp_async_wait has waited for its group, and for other
// threads when a barrier has followed that.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  // Only 16-byte copies can bypass L1, which would keep what is read once.
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(valid)
                 : "memory");
}

// Closes the group of all copies that this thread has issued since the last call.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's closed groups are still under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- ldmatrix: four 8x8 matrices of 16-bit elements, warp
// -------------------------------------------------------

// Lane 8 i + r gives the 16-byte row r of matrix i, in shared memory. Lane l gets of matrix i, in r[i], the
// elements (l / 4, 2 (l % 4)) and the one right of it; transposed, the elements (2 (l % 4), l / 4) and the
// one below it.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- mma: d += A B, warp
// ------------------------------------------------------------------------------------------
//
// With g = lane / 4 and t = lane % 4, 16-bit elements (s8 and e4m3: read 4 for 2 and 16 for 8 in the columns
// of A, rows of B):
//   a[i]: A[g + 8 (i % 2)][2 t + 8 (i / 2) + {0, 1}]      [16, 16]
//   b[i]: B[2 t + 8 i + {0, 1}][g]                        [16, 8]
//   d[i]: D[g + 8 (i / 2)][2 t + i % 2]                   [16, 8]

// fp16 A and B, fp32 D.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// bf16 A and B, fp32 D.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Signed 8-bit A [16, 32] and B [32, 8], int32 D, which wraps.
__device__ __forceinline__ void mma_m16n8k32_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
// e4m3 A [16, 32] and B [32, 8], fp32 D. Ada adds up with few bits more than fp16 has: not many at once. On
// Hopper, where only wgmma takes e4m3, nvcc makes products of fp16 of it.
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// ---- one thread: 16-bit pairs, powers of two
// --------------------------------------------------------------------

// Rounded to nearest even; `low` goes to the lower half.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 2^x with a relative error below 2^-22; subnormal results are 0. NaN stays.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fastdiff::ptx

#endif
