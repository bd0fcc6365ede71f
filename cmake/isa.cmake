# SPDX-License-Identifier: Apache-2.0
# Compiles every *_cpu.cpp for the baseline, AVX2 and AVX-512, every *_vnni.cpp for both kinds of VNNI, and every
# *_amx.cpp for AMX. Which copy runs is decided at run time (csrc/core/isa.h), so a wheel built on one machine runs on
# any other of its architecture.
#   FASTDIFF_KERNELS gains one object library per instruction set.
include(CheckCXXCompilerFlag)
fastdiff_rooms(cpu_sources *_cpu.cpp)
fastdiff_rooms(vnni_sources *_vnni.cpp)
fastdiff_rooms(amx_sources *_amx.cpp)

set(isas)
# fastdiff_isa(name FLAGS flags... SOURCES files...): nothing without files, or if the compiler does not know the flags.
function(fastdiff_isa isa)
  cmake_parse_arguments(PARSE_ARGV 1 isa "" "" "FLAGS;SOURCES")
  string(TOUPPER ${isa} isa_upper)
  list(JOIN isa_FLAGS " " flags_text)
  check_cxx_compiler_flag("${flags_text}" FASTDIFF_COMPILES_${isa_upper})
  if(NOT isa_SOURCES OR NOT FASTDIFF_COMPILES_${isa_upper})
    return()
  endif()
  target_compile_definitions(fastdiff_flags INTERFACE FASTDIFF_ISA_${isa_upper}=1)
  add_library(fastdiff_cpu_${isa} OBJECT ${isa_SOURCES})
  target_compile_definitions(fastdiff_cpu_${isa} PRIVATE FASTDIFF_ISA=${isa})
  target_compile_options(fastdiff_cpu_${isa} PRIVATE ${isa_FLAGS})
  target_link_libraries(fastdiff_cpu_${isa} PRIVATE fastdiff_flags)
  set(isas ${isas} ${isa} PARENT_SCOPE)
  set(FASTDIFF_KERNELS ${FASTDIFF_KERNELS} fastdiff_cpu_${isa} PARENT_SCOPE)
endfunction()

fastdiff_isa(baseline SOURCES ${cpu_sources})
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  fastdiff_isa(avx2 FLAGS ${avx2} SOURCES ${cpu_sources})
  fastdiff_isa(avx2_vnni FLAGS ${avx2} -mavxvnni SOURCES ${vnni_sources})  # gcc has these and AMX from 11 on
  fastdiff_isa(avx512 FLAGS ${avx512} SOURCES ${cpu_sources})
  fastdiff_isa(avx512_vnni FLAGS ${avx512} -mavx512vnni SOURCES ${vnni_sources})
  fastdiff_isa(amx FLAGS ${avx512} -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8 SOURCES ${amx_sources})
endif()

list(JOIN isas " " isas_text)
target_compile_definitions(fastdiff_flags INTERFACE "FASTDIFF_ISAS=\"${isas_text}\"")
