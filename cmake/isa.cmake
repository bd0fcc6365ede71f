# SPDX-License-Identifier: Apache-2.0
# Compiles every *_cpu.cpp once per instruction set, and every *_amx.cpp for AMX. Which copy runs is decided at run time (csrc/core/isa.h),
# so a wheel built on one machine runs on any other of its architecture.
#   FASTDIFF_KERNELS gains one object library per instruction set.
set(isas baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(isa_flags_avx2 -mavx2 -mfma -mf16c)
  set(isa_flags_avx512 ${isa_flags_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  set(isa_flags_amx ${isa_flags_avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
  list(APPEND isas avx2 avx512)
  include(CheckCXXCompilerFlag)
  list(JOIN isa_flags_amx " " amx_flags)
  check_cxx_compiler_flag("${amx_flags}" FASTDIFF_COMPILES_AMX)  # gcc has them from 11 on
  if(FASTDIFF_COMPILES_AMX)
    list(APPEND isas amx)
  endif()
endif()

fastdiff_rooms(cpu_sources *_cpu.cpp)
fastdiff_rooms(amx_sources *_amx.cpp)
foreach(isa ${isas})
  string(TOUPPER ${isa} isa_upper)
  target_compile_definitions(fastdiff_flags INTERFACE FASTDIFF_ISA_${isa_upper}=1)
  if(isa STREQUAL "amx")
    set(isa_sources ${amx_sources})
  else()
    set(isa_sources ${cpu_sources})
  endif()
  add_library(fastdiff_cpu_${isa} OBJECT ${isa_sources})
  target_compile_definitions(fastdiff_cpu_${isa} PRIVATE FASTDIFF_ISA=${isa})
  target_compile_options(fastdiff_cpu_${isa} PRIVATE ${isa_flags_${isa}})
  target_link_libraries(fastdiff_cpu_${isa} PRIVATE fastdiff_flags)
  list(APPEND FASTDIFF_KERNELS fastdiff_cpu_${isa})
endforeach()

list(JOIN isas " " isas_text)
target_compile_definitions(fastdiff_flags INTERFACE "FASTDIFF_ISAS=\"${isas_text}\"")
