// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention_backward on CUDA: on the tensor cores where the tensors allow it.
//
// Plans come from memory that the host cannot see. They are checked where they are read; each sum is one
// chain in a fixed order, with no atomics.
#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_general.cuh"
#include "attention/block_sparse_attention_backward/block_sparse_attention_backward_mma.cuh"

namespace fastdiff::block_sparse_attention_backward {

namespace {

// delta for all; then the gradients, and that of a table.
template <class G>
void launch_all(const Params& p, void* scratch, cudaStream_t stream) {
  using T = typename G::Real;
  auto* const delta = static_cast<T*>(scratch);
  general::launch_delta(p, delta, stream);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (mma::fits(p))
      mma::launch_mma(p, delta, stream);
    else
      general::launch_tiling<G>(p, delta, stream);
  } else {
    general::launch_tiling<G>(p, delta, stream);
  }
  if (p.dtable.data != nullptr)
    general::launch_tables<G>(p, delta, delta + p.extent.samples * p.extent.heads * p.extent.queries, stream);
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  general::with_tiling(params, [&](auto tiling) { launch_all<decltype(tiling)>(params, scratch, on); });
}

}  // namespace fastdiff::block_sparse_attention_backward
