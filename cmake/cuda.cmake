# SPDX-License-Identifier: Apache-2.0
# Compiles every .cu file, when FASTDIFF_CUDA is on, for the architectures in FASTDIFF_CUDA_ARCHS.
#   FASTDIFF_KERNELS gains the object library fastdiff_cuda.
# The kernels know nothing of torch and the CUDA runtime is linked statically: the result needs no CUDA library
# at load time and no torch with CUDA at build time. The driver is looked for when the first kernel runs.
if(NOT FASTDIFF_CUDA)
  target_compile_definitions(fastdiff_flags INTERFACE FASTDIFF_HAS_CUDA=0 FASTDIFF_CUDA_ARCHS="")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${FASTDIFF_CUDA_ARCHS})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# "80;90a-real" is machine code and PTX for 8.0, machine code for 9.0a: to users, "80+PTX 90a".
list(TRANSFORM FASTDIFF_CUDA_ARCHS APPEND "+PTX" REGEX "[0-9af]$" OUTPUT_VARIABLE archs)
list(TRANSFORM archs REPLACE "-real$" "")
list(JOIN archs " " archs_text)
target_compile_definitions(fastdiff_flags INTERFACE
  FASTDIFF_HAS_CUDA=1 "FASTDIFF_CUDA_ARCHS=\"${archs_text}\"")

# --fmad=false is to the device what -ffp-contract=off is to the host. --expt-relaxed-constexpr lets kernels call
# the constexpr functions of the headers that they share with the host.
set(device_flags --fmad=false --expt-relaxed-constexpr --threads=${FASTDIFF_NVCC_THREADS}
  -Xcompiler=-Wall,-Wextra,-ffp-contract=off,-fno-math-errno,-ffile-prefix-map=${PROJECT_SOURCE_DIR}=.)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND device_flags --compress-mode=size)  # machine code for many GPUs is much alike
endif()

fastdiff_rooms(cuda_sources *.cu)
if(cuda_sources)
  add_library(fastdiff_cuda OBJECT ${cuda_sources})
  target_compile_options(fastdiff_cuda PRIVATE ${device_flags})
  target_link_libraries(fastdiff_cuda PRIVATE fastdiff_flags)
  list(APPEND FASTDIFF_KERNELS fastdiff_cuda)
endif()
target_link_libraries(fastdiff_flags INTERFACE CUDA::cudart_static)
