// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward on CUDA: on the tensor cores where the tensors allow it.
//
// Plans come from memory that the host cannot see. They are checked where they are read; each sum is one
// chain in a fixed order, with no atomics.
#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_general.cuh"
#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_mma.cuh"

namespace fastdiff::block_sparse_attention_backward {

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (mma::fits(params)) return mma::launch_mma(params, scratch, on);
  general::launch_general(params, scratch, on);
}

}  // namespace fastdiff::block_sparse_attention_backward
