// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's <cuda_runtime.h> when g++ compiles a .cu file: the kernel runs on the CPU. See
// README.md.
#pragma once

#if defined(__CUDACC__)
#error "the SIMT emulator is for g++: tests/kit/simt must not be on nvcc's include path"
#endif

// CUDA's own fp16, bf16 and fp8 headers include two others, whose types are ours here, and use their macros.
#define __VECTOR_TYPES_H__
#define __VECTOR_FUNCTIONS_H__
#define __NV_SILENCE_DEPRECATION_BEGIN
#define __NV_SILENCE_DEPRECATION_END

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "simt/atomics.h"
#include "simt/fiber.h"
#include "simt/intrinsics.h"
#include "simt/machine.h"
#include "simt/runtime.h"
#include "simt/shared.h"
#include "simt/vector_types.h"
#include "simt/warp.h"

inline const uint3& threadIdx = simt::machine.thread_index;
inline const uint3& blockIdx = simt::machine.block_index;
inline const dim3& blockDim = simt::machine.block_dim;
inline const dim3& gridDim = simt::machine.grid_dim;
inline constexpr int warpSize = simt::kWarpSize;
