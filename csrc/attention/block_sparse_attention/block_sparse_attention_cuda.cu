// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on CUDA: on the tensor cores where the tensors allow it.
//
// Plans come from memory that the host cannot see. They are checked where they are read; each result is one
// chain of sums in a fixed order.
#include "attention/block_sparse_attention/block_sparse_attention_general.cuh"
#include "attention/block_sparse_attention/block_sparse_attention_mma.cuh"

namespace fastdiff::block_sparse_attention {
namespace {

// A thread takes an element of out; that of the first also lse.
template <class T>
__global__ void __launch_bounds__(256) merge_splits(const Params p, const Params parts) {
  const int64_t n = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int dim = p.extent.head_dim, d = static_cast<int>(n % dim);
  const int64_t row = n / dim;
  if (row >= p.extent.samples * p.extent.heads * p.extent.queries) return;
  const int64_t q = row % p.extent.queries, list = row / p.extent.queries;
  const int64_t b = list / p.extent.heads, h = list % p.extent.heads;
  const Merge<T> merge(static_cast<const T*>(parts.lse.data) + row, parts.lse_of_part, parts.splits);
  T sum = 0;
  for (int i = 0; i < parts.splits; ++i)
    sum = fma_(static_cast<const T*>(parts.out.data)[i * parts.out_of_split + n], merge.weight(i), sum);
  store_as<T>(p.out.data, p.out.dtype, p.out.at(b, h, q) + d * p.out.element, sum);
  if (d == 0) store_as<double>(p.lse.data, p.lse.dtype, p.lse.at(b, h, q), merge.whole());
}

void launch_merge(const Params& p, const Params& parts, cudaStream_t stream) {
  const int64_t elements = p.extent.samples * p.extent.heads * p.extent.queries * p.extent.head_dim;
  const auto kernel = p.wide() ? &merge_splits<double> : &merge_splits<float>;
  launch(kernel, dim3(blocks_for(elements, 256)), dim3(256), 0, stream, p, parts);
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (rows_of_all(params) == 0) return;  // nothing to write
  const Params parts = with_results_in(params, scratch);
  if (mma::fits(parts))
    mma::launch_mma(parts, on);
  else
    general::launch_general(parts, on);
  if (params.splits > 1) launch_merge(params, parts, on);
}

}  // namespace fastdiff::block_sparse_attention
