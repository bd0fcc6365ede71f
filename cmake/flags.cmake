# SPDX-License-Identifier: Apache-2.0
# What every file is compiled and linked with: the target fastdiff_flags.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_SKIP_RPATH ON)  # torch is loaded before us; a path of the build machine could only do harm
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")

add_library(fastdiff_flags INTERFACE)
target_include_directories(fastdiff_flags INTERFACE ${PROJECT_SOURCE_DIR}/csrc)
target_compile_definitions(fastdiff_flags INTERFACE FASTDIFF_VERSION="${FASTDIFF_VERSION}")

# -ffp-contract=off: the sources say fma where they mean it, which is what makes CPU and GPU agree to the bit.
# -ffile-prefix-map: no path of the build machine in the wheel, and the same bytes from any folder.
set(host_flags
  -Wall -Wextra -ffp-contract=off -fno-math-errno -ffile-prefix-map=${PROJECT_SOURCE_DIR}=.
  $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE> $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=3>)
target_compile_options(fastdiff_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${host_flags}>")

# The version script keeps every symbol to its own library, those of C++ templates and the CUDA runtime included,
# so that two copies of fastdiff, or fastdiff and anything else, can live in one process.
target_link_options(fastdiff_flags INTERFACE
  LINKER:-z,relro,-z,now,-z,noexecstack LINKER:--build-id=sha1
  LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map)
