// SPDX-License-Identifier: Apache-2.0
#include "wavelet/filter_bank.h"

#include <cmath>
#include <functional>
#include <string>

namespace fastdiff::wavelet {

void check_bank(const char* op, std::span<const double> taps, int64_t ndim, int64_t edge) {
  const size_t length = taps.size() / 2;
  if (length < 2 || taps.size() % 4 != 0 || length > kMaxTaps)
    refuse(op, "taps must be two filters of one even length from 2 to ", kMaxTaps, ", got ", taps.size(),
           " numbers");
  for (const double tap : taps)
    if (!std::isfinite(tap)) refuse(op, "taps must be finite, got ", tap);
  if (ndim < 1 || ndim > kMaxSpatial) refuse(op, "ndim must be 1, 2 or 3, got ", ndim);
  if (edge < 0 || edge >= kEdges) refuse(op, "edge must be 0 to ", kEdges - 1, ", got ", edge);
}

namespace {

using TapOf = std::function<double(int)>;  // f[t]

Stencil stencil_of(int length, int offset, const TapOf& u, const TapOf& v) {
  Stencil s;
  s.length = length;
  s.offset = offset;
  const auto add = [&](bool with_u, bool with_v) {
    const int before = s.taps();
    int count = 0;
    for (int t = 0; t < length; ++t)
      if ((u(t) != 0) == with_u && (v(t) != 0) == with_v)
        s.tap[static_cast<size_t>(before + count++)] = {t, u(t), v(t)};
    return count;
  };
  s.both = add(true, true);
  s.only_u = add(true, false);
  s.only_v = add(false, true);
  return s;
}

}  // namespace

Stencil forward_stencil(std::span<const double> taps, Edge edge) {
  const int length = static_cast<int>(taps.size() / 2);
  return stencil_of(
      length, signal_offset(length, edge), [&](int t) { return taps[static_cast<size_t>(t)]; },
      [&](int t) { return taps[static_cast<size_t>(length + t)]; });
}

// Samples 2r - o and 2r + 1 - o are made of the coefficients k = r - L/2 + 1 ... r, by the taps 2 (r - k) and
// 2 (r - k) + 1: place t of the sequence is band t % 2 of k = r - L/2 + 1 + t/2.
Stencil backward_stencil(std::span<const double> taps) {
  const int length = static_cast<int>(taps.size() / 2);
  const auto tap = [&](int t, int odd) {
    return taps[static_cast<size_t>((t % 2) * length + 2 * (length / 2 - 1 - t / 2) + odd)];
  };
  return stencil_of(length, length - 2, [&](int t) { return tap(t, 0); }, [&](int t) { return tap(t, 1); });
}

void check_float(const char* op, const char* argument, const TensorView& tensor, const TensorView& like,
                 const char* like_name) {
  if (tensor.device != like.device)
    refuse(op, argument, " must be on ", device_text(like.device), " like ", like_name, ", got ",
           device_text(tensor.device));
  if (!is_real_float(tensor.dtype))
    refuse(op, argument, " must be float32, float16, bfloat16 or float64, got ", name(tensor.dtype));
}

void check_numbers(const char* op, const char* argument, const TensorView& numbers, const TensorView& like,
                   const char* like_name, const int64_t* leading, int leading_rank, int64_t bands) {
  check_float(op, argument, numbers, like, like_name);
  bool fits = numbers.rank <= leading_rank + 1;
  for (int d = 0; fits && d < numbers.rank; ++d) {
    const int from_end = numbers.rank - d;  // 1: the bands
    const int64_t wanted = from_end == 1 ? bands : leading[leading_rank + 1 - from_end];
    fits = numbers.sizes[d] == 1 || numbers.sizes[d] == wanted;
  }
  if (fits) return;
  std::string wanted = "[";
  for (int d = 0; d < leading_rank; ++d) wanted += std::to_string(leading[d]) + ", ";
  refuse(op, argument, " must broadcast to ", wanted, bands, "], got ", shape_text(numbers));
}

}  // namespace fastdiff::wavelet
