// SPDX-License-Identifier: Apache-2.0
// The front desk of match_tokens: checks once for all callers and backends, then lays out the launch.
#include "attention/match_tokens/match_tokens_math.h"

namespace fastdiff::match_tokens {
namespace {

constexpr const char* kOp = "match_tokens";

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse(kOp, parts...);
}

}  // namespace

void check(const Arguments& arguments) {
  const TensorView &a = arguments.a, &b = arguments.b;
  attention::check_sequences(kOp, "a", a, a);
  attention::check_sequences(kOp, "b", b, a);
  if (b.dtype != a.dtype) refuse("b must be ", name(a.dtype), " like a, got ", name(b.dtype));
  if (b.sizes[0] != a.sizes[0] || b.sizes[2] != a.sizes[2])
    refuse("b must have shape [", a.sizes[0], ", N, ", a.sizes[2], "] to go with a, got ", shape_text(b));
  if (b.sizes[1] == 0 || b.sizes[1] > kMaxColumns)
    refuse("b must have 1 to ", kMaxColumns, " tokens, got ", b.sizes[1]);
}

Params prepare(const Arguments& arguments, const TensorView& score, const TensorView& index) {
  const TensorView &a = arguments.a, &b = arguments.b;
  const DType dtype = a.dtype == DType::f64 ? DType::f64 : DType::f32;
  attention::check_output(kOp, "score", score, {nullptr, dtype, 2, a.sizes, a.strides, a.device});
  attention::check_output(kOp, "index", index, {nullptr, DType::i64, 2, a.sizes, a.strides, a.device});
  for (const auto& [argument, t] : {std::pair("score", &score), std::pair("index", &index)}) {
    attention::check_apart(kOp, argument, *t, "a", a);
    attention::check_apart(kOp, argument, *t, "b", b);
  }
  attention::check_apart(kOp, "index", index, "score", score);
  Params p;
  p.samples = a.sizes[0];
  p.rows = a.sizes[1];
  p.columns = b.sizes[1];
  p.channels = a.sizes[2];
  p.a = attention::sequences_of(a);
  p.b = attention::sequences_of(b);
  p.score = {score.data, dtype, score.strides[0], score.strides[1], 0};
  p.index = static_cast<int64_t*>(index.data);
  p.index_sample = index.strides[0];
  p.index_row = index.strides[1];
  p.wide = dtype == DType::f64;
  return p;
}

int64_t cpu_scratch_bytes(const Params& p, int threads) {
  return (p.samples * p.columns * p.padded() + threads * thread_numel(p)) * (p.wide ? 8 : 4);
}

int64_t cuda_scratch_bytes(const Params& p) {
  return p.samples * (p.rows + p.columns) * p.padded() * (p.wide ? 8 : 4) + kAlignment;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, void*, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::match_tokens
