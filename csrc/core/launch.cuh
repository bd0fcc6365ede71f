// SPDX-License-Identifier: Apache-2.0
// The one way a kernel is launched, and the one header through which a .cu file reaches CUDA. On the CPU, in
// tests, the same sources meet a <cuda_runtime.h> that runs the kernel in an emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastdiff {

inline constexpr int64_t kMaxInt32 = (int64_t{1} << 31) - 1;
inline constexpr int64_t kMaxGridX = kMaxInt32;
inline constexpr unsigned kMaxGridYZ = 65535;
inline constexpr unsigned kMaxBlockThreads = 1024;
inline constexpr size_t kDefaultDynamicSmem = 48 * 1024;  // for more, a kernel has to ask

namespace detail {

inline std::string text(dim3 d) {
  return std::string("(").append(std::to_string(d.x)) + ", " + std::to_string(d.y) + ", " +
         std::to_string(d.z) + ")";
}

inline void check_shape(dim3 grid, dim3 block) {
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ)
    throw std::runtime_error("fastdiff::launch: grid must be within 1 and (2147483647, 65535, 65535), got " +
                             text(grid));
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > kMaxBlockThreads)
    throw std::runtime_error("fastdiff::launch: block must have 1 to 1024 threads, got " + text(block));
}

}  // namespace detail

// Throws std::runtime_error that names the CUDA error: "fastdiff::launch: cudaErrorInvalidValue (invalid
// argument)".
inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // the runtime keeps it, and the next launch would be blamed for it
  throw std::runtime_error(std::string("fastdiff::") + what + ": " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

// Makes a device current, and the one that was current again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check_cuda(cudaGetDevice(&before_), "launch");
    if (before_ != device) check_cuda(cudaSetDevice(device), "launch");
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Of the current device; `what` names the caller in an error.
inline int64_t multiprocessors(const char* what) {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), what);
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), what);
  return count;
}

// Of the current device: 90 is 9.0.
inline int compute_capability(const char* what) {
  int device = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device), what);
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), what);
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), what);
  return 10 * major + minor;
}

// The number of blocks for `work` items, for the x axis of a grid. Throws std::runtime_error where dim3 would
// truncate.
inline unsigned blocks_for(int64_t work, int64_t per_block) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  if (work < 0 || blocks > kMaxGridX)
    throw std::runtime_error("fastdiff::launch: " + std::to_string(work) +
                             " items need more blocks than a grid can have");
  return static_cast<unsigned>(blocks);
}

// kernel<<<grid, block, dynamic_smem, stream>>>(args...), checked. The grid must not be empty: return before
// on no work. Throws std::runtime_error on a shape outside the limits and on every error of the launch
// itself; errors of the kernel while it runs come later, from whoever synchronises.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t dynamic_smem, cudaStream_t stream,
            Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "as many arguments as the kernel has parameters");
  detail::check_shape(grid, block);
  if (dynamic_smem > kDefaultDynamicSmem)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(dynamic_smem)),
               "launch: dynamic shared memory");
#if defined(__CUDACC__)
  kernel<<<grid, block, dynamic_smem, stream>>>(std::forward<Args>(args)...);
#else
  simt::launch(kernel, grid, block, dynamic_smem, stream, std::forward<Args>(args)...);
#endif
  check_cuda(cudaGetLastError(), "launch");
}

// Stops the kernel, as a failed device-side assert does: the message goes to stderr, and whoever synchronises
// next gets cudaErrorAssert. For values that only the device knows, such as a step index; the host checks all
// the others.
__device__ __forceinline__ void device_refusal(const char* message) {
#if defined(__CUDA_ARCH__)
  __assert_fail(message, __FILE__, __LINE__, "device_refusal");
#elif !defined(__CUDACC__)
  simt::machine.fail(message);
#endif
}

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_smem() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char fastdiff_dynamic_smem[];
  return reinterpret_cast<T*>(fastdiff_dynamic_smem);
#else
  return reinterpret_cast<T*>(simt::machine.shared.dynamic().begin);
#endif
}

}  // namespace fastdiff
