// SPDX-License-Identifier: Apache-2.0
// The front desk of mask_blocks: checks once for all callers and backends, then lays out the launch.
#include "attention/mask_blocks/mask_blocks.h"

namespace fastdiff::mask_blocks {
namespace {

constexpr const char* kOp = "mask_blocks";

int64_t blocks(int64_t items, int64_t block) {
  return (items + block - 1) / block;
}

}  // namespace

Shapes check(const Arguments& a) {
  const TensorView& mask = a.mask;
  if (mask.dtype != DType::b8) refuse(kOp, "mask must be bool, got ", name(mask.dtype));
  if (mask.rank != 4) refuse(kOp, "mask must have 4 dimensions [B, H, N_q, N_kv], got ", shape_text(mask));
  attention::check_block(kOp, "block_q", a.block_q);
  attention::check_block(kOp, "block_k", a.block_k);
  const int64_t rows = blocks(mask.sizes[2], a.block_q), columns = blocks(mask.sizes[3], a.block_k);
  return {{mask.sizes[0], mask.sizes[1], rows, columns},
          {mask.sizes[0] * mask.sizes[1] * rows * columns, a.block_k, blocks(a.block_q, 32)}};
}

Params prepare(const Arguments& a, const TensorView& kinds, const TensorView& bits) {
  const TensorView& mask = a.mask;
  const Shapes shapes = check(a);
  attention::check_result(kOp, "kinds", kinds,
                          {nullptr, DType::u8, 4, shapes.kinds, shapes.kinds, mask.device});
  attention::check_result(kOp, "bits", bits, {nullptr, DType::i32, 3, shapes.bits, shapes.bits, mask.device});
  attention::check_results(kOp, {{"kinds", &kinds}, {"bits", &bits}}, {{"mask", &mask}});
  Params p;
  p.mask = attention::heads_of(mask);
  p.kinds = attention::heads_of(kinds);
  p.bits = {static_cast<uint32_t*>(bits.data), bits.strides[0], bits.strides[1], bits.strides[2]};
  p.lists = mask.sizes[0] * mask.sizes[1];
  p.heads = mask.sizes[1];
  p.queries = mask.sizes[2];
  p.keys = mask.sizes[3];
  p.rows = shapes.kinds[2];
  p.columns = shapes.kinds[3];
  p.block_q = static_cast<int>(a.block_q);
  p.block_k = static_cast<int>(a.block_k);
  p.words = static_cast<int>(shapes.bits[2]);
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::mask_blocks
