// SPDX-License-Identifier: Apache-2.0
#include "quant/rows.h"

#include <algorithm>

#include "core/layout.h"

namespace fastdiff::quant {

Rows rows_of(const TensorView& t) {
  Rows rows;
  rows.data = t.data;
  rows.dtype = t.dtype;
  rows.element = t.rank > 0 ? t.stride(-1) : 1;
  for (int d = t.rank - 2; d >= 0; --d) {
    if (t.sizes[d] == 1) continue;
    const int last = rows.dims - 1;
    if (last >= 0 && t.strides[d] == rows.size[last] * rows.stride[last]) {
      rows.size[last] *= t.sizes[d];
      continue;
    }
    rows.size[rows.dims] = t.sizes[d];
    rows.stride[rows.dims] = t.strides[d];
    ++rows.dims;
  }
  return rows;
}

int64_t count_rows(const TensorView& t) {
  int64_t count = 1;
  for (int d = 0; d + 1 < t.rank; ++d) count *= t.sizes[d];
  return count;
}

Vectors vectors_of(const std::optional<TensorView>& t) {
  if (!t) return {};
  const auto stride = [&t](int d) { return t->size(d) == 1 ? 0 : t->stride(d); };
  return {t->data, t->dtype, t->rank > 1 ? stride(-2) : 0, t->rank > 0 ? stride(-1) : 0};
}

void check_device(const char* op, const char* argument, const TensorView& t, const TensorView& x) {
  if (t.device != x.device)
    refuse(op, argument, " must be on ", device_text(x.device), " like x, got ", device_text(t.device));
}

void check_float(const char* op, const char* argument, const TensorView& t, const TensorView& x) {
  check_device(op, argument, t, x);
  if (!is_real_float(t.dtype) || t.dtype == DType::f64)
    refuse(op, argument, " must be float32, float16 or bfloat16, got ", name(t.dtype));
}

void check_packed(const char* op, const char* argument, const TensorView& t, DType dtype, int64_t numel,
                  const TensorView& x) {
  check_device(op, argument, t, x);
  if (t.dtype != dtype) refuse(op, argument, " must be ", name(dtype), ", got ", name(t.dtype));
  if (t.numel() != numel)
    refuse(op, argument, " must have ", numel, " elements as pack_weight() made it, got ", t.numel());
  if (!is_contiguous(t)) refuse(op, argument, " must be contiguous as pack_weight() made it");
  if (t.device.type == DeviceType::cuda && reinterpret_cast<uintptr_t>(t.data) % 16 != 0)
    refuse(op, argument, " must be aligned to 16 bytes on CUDA");
}

void check_for_rows(const char* op, const char* argument, const TensorView& t, DType dtype,
                    const TensorView& x) {
  check_device(op, argument, t, x);
  if (t.dtype != dtype) refuse(op, argument, " must be ", name(dtype), ", got ", name(t.dtype));
  const int64_t rows = count_rows(x);
  if (t.rank != 1 || (t.sizes[0] != 1 && t.sizes[0] != rows))
    refuse(op, argument, " must have 1 element or one for each of the ", rows, " rows of x, got shape ",
           shape_text(t));
}

void check_shape_like(const char* op, const char* argument, const TensorView& t, const TensorView& x,
                      int64_t last) {
  const bool fits =
      t.rank == x.rank && std::equal(x.sizes, x.sizes + x.rank - 1, t.sizes) && t.size(-1) == last;
  if (fits) return;
  int64_t sizes[kMaxRank];
  std::copy_n(x.sizes, x.rank, sizes);
  sizes[x.rank - 1] = last;
  refuse(op, argument, " must have shape ", list_text({sizes, static_cast<size_t>(x.rank)}), ", got ",
         shape_text(t));
}

}  // namespace fastdiff::quant
