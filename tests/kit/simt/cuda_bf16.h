// SPDX-License-Identifier: Apache-2.0
// The CUDA toolkit's own header compiles with g++, once its vector types are those of the emulator.
#pragma once

#include "cuda_runtime.h"

#if !__has_include_next(<cuda_bf16.h>)
#error "cuda_bf16.h comes from the CUDA toolkit, which is not installed; csrc/core/dtype.h needs no toolkit"
#endif
#include_next <cuda_bf16.h>
