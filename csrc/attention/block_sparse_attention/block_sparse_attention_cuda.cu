// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on CUDA: on the tensor cores where the tensors allow it.
//
// Plans come from memory that the host cannot see. They are checked where they are read; each result is one
// chain of sums in a fixed order.
#include "attention/block_sparse_attention/block_sparse_attention_general.cuh"
#include "attention/block_sparse_attention/block_sparse_attention_mma.cuh"

namespace fastdiff::block_sparse_attention {

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (params.extent.samples * params.extent.heads * params.plan.rows == 0) return;  // nothing to write
  if (mma::fits(params)) return mma::launch_mma(params, on);
  general::launch_general(params, on);
}

}  // namespace fastdiff::block_sparse_attention
