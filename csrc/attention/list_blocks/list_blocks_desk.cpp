// SPDX-License-Identifier: Apache-2.0
// The front desk of list_blocks: checks once for all callers and backends, then lays out the launch.
#include "attention/list_blocks/list_blocks.h"

#include <limits>

namespace fastdiff::list_blocks {
namespace {

constexpr const char* kOp = "list_blocks";
constexpr int64_t kMostEntries = std::numeric_limits<int32_t>::max();

Vector vector_of(const TensorView& t) {
  return {static_cast<int32_t*>(t.data), t.strides[t.rank - 1]};
}

}  // namespace

Shapes check(const Arguments& a) {
  const TensorView& kinds = a.kinds;
  if (kinds.dtype != DType::b8 && kinds.dtype != DType::u8)
    refuse(kOp, "blocks must be bool or uint8, got ", name(kinds.dtype));
  if (kinds.rank != 4) refuse(kOp, "blocks must have 4 dimensions [B, H, R, C], got ", shape_text(kinds));
  int64_t entries = 1;
  for (int d = 0; d < 4; ++d) {
    // Zeros first, so that the product of the others does not matter.
    if (kinds.numel() != 0 && kinds.sizes[d] > kMostEntries / entries)
      refuse(kOp, "blocks must be at most ", kMostEntries, " in number, got ", shape_text(kinds));
    entries *= kinds.sizes[d];
  }
  return {{kinds.sizes[0], kinds.sizes[1], kinds.sizes[2] + 1},
          {entries},
          {kinds.dtype == DType::u8 ? entries : 0}};
}

Params prepare(const Arguments& a, const Results& results) {
  const TensorView& kinds = a.kinds;
  const Shapes shapes = check(a);
  const auto want = [&](int rank, const int64_t* sizes) {
    return TensorView{nullptr, DType::i32, rank, sizes, sizes, kinds.device};
  };
  attention::check_result(kOp, "offsets", results.offsets, want(3, shapes.offsets));
  attention::check_result(kOp, "columns", results.columns, want(1, shapes.columns));
  attention::check_result(kOp, "masks", results.masks, want(1, shapes.masks));
  attention::check_results(
      kOp, {{"offsets", &results.offsets}, {"columns", &results.columns}, {"masks", &results.masks}},
      {{"blocks", &kinds}});
  Params p;
  p.kinds = attention::heads_of(kinds);
  p.lists = kinds.sizes[0] * kinds.sizes[1];
  p.heads = kinds.sizes[1];
  p.rows = kinds.sizes[2];
  p.columns = kinds.sizes[3];
  p.offsets = vector_of(results.offsets);
  p.offsets_sample = results.offsets.strides[0];
  p.offsets_head = results.offsets.strides[1];
  p.found = vector_of(results.columns);
  if (kinds.dtype == DType::u8) p.masks = vector_of(results.masks);
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse(kOp, "this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::list_blocks
