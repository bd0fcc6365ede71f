// SPDX-License-Identifier: Apache-2.0
// PTX instructions of Hopper as functions: barriers in shared memory, bulk copies, products by warpgroups.
// Code that calls them stands behind FASTDIFF_SM90A and runs where on_sm90a(). Under the emulator the same
// functions come from its simt/ptx_sm90.h.
#pragma once

#include <string_view>

#include "core/launch.cuh"
#include "core/ptx.cuh"

// Whether this pass of the compiler is for a device that has these instructions; also on the host, so that it
// sees the same kernels.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTDIFF_SM90A 1
#else
#define FASTDIFF_SM90A 0
#endif

namespace fastdiff {

// Whether kernels for sm_90a are in this build and the current device is one.
inline bool on_sm90a() {
#if defined(__CUDACC__)
  constexpr bool kBuilt = std::string_view(FASTDIFF_CUDA_ARCHS).find("90a") != std::string_view::npos;
#else
  constexpr bool kBuilt = true;
#endif
  return kBuilt && compute_capability("launch") == 90;
}

namespace ptx {

// The descriptor of a wgmma's B: rows of 64 bytes of which the product reads 32 from this address on; chunk c
// of 16 bytes of row r lies where chunk c ^ (r / 2 % 4) would. Row 0 is aligned to 512 bytes.
__device__ __forceinline__ uint64_t swizzled_rows(const void* first) {
  constexpr uint64_t kEightRows = 512 >> 4, kSwizzle64 = 2;
  return (shared_address(first) >> 4 & 0x3fff) | kEightRows << 32 | kSwizzle64 << 62;
}

}  // namespace ptx
}  // namespace fastdiff

#if !defined(__CUDACC__)
#include "simt/ptx_sm90.h"
#elif FASTDIFF_SM90A

namespace fastdiff::ptx {

// ---- mbarrier: arrivals of threads and of bytes, in shared memory ---------------------------------------
//
// A phase ends when as many arrivals have come as mbarrier_init said and all bytes that they announced.
// Phases are numbered from 0; a wait is for the end of one that is even or odd.

// By one thread; the others see it behind mbarrier_init_done, by that thread, and a __syncthreads.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void mbarrier_init_done() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and announces so many bytes of bulk copies.
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, bool odd) {
  for (int done = 0; done == 0;)
    asm volatile(
        "{ .reg .pred ended; mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2; "
        "selp.b32 %0, 1, 0, ended; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(static_cast<int>(odd))
        : "memory");
}

// ---- cp.async.bulk: global to shared memory, by one thread ----------------------------------------------

// Addresses and size: multiples of 16. The bytes arrive at the barrier.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// ---- registers: of each thread of a warpgroup, which all of its warps call ------------------------------

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma: d += A B, warpgroup, in the background ------------------------------------------------------
//
// A [64, 32] of bytes from registers: those of warp w of the four have rows 16 w on as A of mma_m16n8k32. B
// [32, 128] lies in shared memory, a row of 32 bytes for each column. With g = lane / 4 and t = lane % 4:
//   d[4 j + i]: D[16 w + g + 8 (i / 2)][8 j + 2 t + i % 2]      [64, 128]
//
// Registers that a product reads or writes belong to it from wgmma_fence, which the first of some products
// follows, to the wgmma_wait for its group: wgmma_hold, before and after, keeps the compiler from moving
// other uses of them into that time.

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ __forceinline__ void wgmma_hold(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <class Word, int kCount>
__device__ __forceinline__ void wgmma_hold(Word (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

#define FASTDIFF_FOUR(c, i) "+" c(d[i]), "+" c(d[i + 1]), "+" c(d[i + 2]), "+" c(d[i + 3])
#define FASTDIFF_SIXTEEN(c, i) \
  FASTDIFF_FOUR(c, i), FASTDIFF_FOUR(c, i + 4), FASTDIFF_FOUR(c, i + 8), FASTDIFF_FOUR(c, i + 12)
#define FASTDIFF_SUMS(c) \
  FASTDIFF_SIXTEEN(c, 0), FASTDIFF_SIXTEEN(c, 16), FASTDIFF_SIXTEEN(c, 32), FASTDIFF_SIXTEEN(c, 48)

// Signed bytes, int32 sums. Without `add` d = A B.
__device__ __forceinline__ void wgmma_m64n128k32(int (&d)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %69, 0; wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 { %0, "
      "%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "
      "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "
      "%60, %61, %62, %63 }, {%64, %65, %66, %67}, %68, add; } "
      : FASTDIFF_SUMS("r")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}

// e4m3; sums are float32, but what is added in a product keeps 13 bits behind the point of its largest
// number.
__device__ __forceinline__ void wgmma_m64n128k32(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                 bool add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %69, 0; wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 { "
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63 }, {%64, %65, %66, %67}, %68, add, 1, 1; } "
      : FASTDIFF_SUMS("f")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}

#undef FASTDIFF_SUMS
#undef FASTDIFF_SIXTEEN
#undef FASTDIFF_FOUR

}  // namespace fastdiff::ptx

#endif
