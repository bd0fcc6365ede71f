// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that host code uses, for one made-up device whose memory is the host's.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>

#include "simt/machine.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace simt {

// Few multiprocessors, so that grids sized to the device stay small.
inline constexpr int kMultiprocessors = 4;
inline constexpr int kBlocksPerMultiprocessor = 2;

inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, int> dynamic_shared_limits;  // by kernel, set by cudaFuncSetAttribute

inline cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace simt

inline cudaError_t cudaPeekAtLastError() {
  return simt::last_error;
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(simt::last_error, cudaSuccess);
}
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
  }
  return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  return *count = 1, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  return *device = 0, cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return simt::remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return simt::remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = simt::kDefaultSharedBytes;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = simt::kWarpSize;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = simt::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = simt::kMaxSharedBytes + 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = simt::kMaxSharedBytes;
      return cudaSuccess;
  }
  return simt::remember(cudaErrorInvalidValue);
}

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > simt::kMaxSharedBytes)
    return simt::remember(cudaErrorInvalidValue);
  simt::dynamic_shared_limits[reinterpret_cast<const void*>(kernel)] = value;
  return cudaSuccess;
}
template <class... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Params...), int, size_t) {
  return *blocks = simt::kBlocksPerMultiprocessor, cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** pointer, size_t bytes) {
  *pointer = static_cast<T*>(std::malloc(bytes));
  return simt::remember(*pointer != nullptr || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}
inline cudaError_t cudaFree(void* pointer) {
  return std::free(pointer), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return std::memset(to, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  return std::memset(to, value, bytes), cudaSuccess;
}

namespace simt {

// kernel<<<grid, block, dynamic_bytes>>>(args...): refuses what the driver would refuse, through
// cudaGetLastError.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t dynamic_bytes, cudaStream_t,
            Args&&... args) {
  static_assert((0 + ... + sizeof(Params)) <= 32764, "more parameters than a kernel can have");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "kernel parameters are copied as bytes");
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool fits = threads >= 1 && threads <= kMaxBlockThreads && block.z <= 64 && grid.x >= 1 &&
                    grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!fits) return static_cast<void>(remember(cudaErrorInvalidConfiguration));
  const auto limit = dynamic_shared_limits.find(reinterpret_cast<const void*>(kernel));
  const size_t allowed =
      limit == dynamic_shared_limits.end() ? kDefaultSharedBytes : static_cast<size_t>(limit->second);
  if (dynamic_bytes > std::max(allowed, kDefaultSharedBytes))
    return static_cast<void>(remember(cudaErrorInvalidValue));
  run_grid(kernel, grid, block, dynamic_bytes, args...);
}

}  // namespace simt
