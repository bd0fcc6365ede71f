# SPDX-License-Identifier: Apache-2.0
# The target fastdiff_torch: torch's stable ABI, for the *_op.cpp files and nothing else.
# Only the folder that torch lies in is asked for: find_package(Torch) would pull in what torch was built with, a
# CUDA toolkit included. TORCH_TARGET_VERSION hides what is newer than the oldest torch that we promise to load on.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "from importlib.util import find_spec; s = find_spec('torch'); print(*s.submodule_search_locations if s else ())"
  OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT torch_root)
  message(FATAL_ERROR "torch is not installed for ${Python_EXECUTABLE}. Install it first: pip install torch==2.13.0")
endif()
if(NOT EXISTS ${torch_root}/include/torch/csrc/stable/library.h)
  message(FATAL_ERROR "The torch in ${torch_root} is too old: 2.11 is the first that fastdiff builds with.")
endif()

add_library(fastdiff_torch INTERFACE)
target_include_directories(fastdiff_torch SYSTEM INTERFACE ${torch_root}/include)
target_compile_definitions(fastdiff_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
# The headers' error messages name their file: not where it lay on the build machine.
target_compile_options(fastdiff_torch INTERFACE -ffile-prefix-map=${torch_root}/include=torch)
target_link_libraries(fastdiff_torch INTERFACE -Wl,--as-needed ${torch_root}/lib/libtorch_cpu.so)
