// SPDX-License-Identifier: Apache-2.0
#include "core/view.h"

namespace fastdiff {

namespace {

std::string joined(const int64_t* numbers, int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text.append(i ? ", " : "").append(std::to_string(numbers[i]));
  return text;
}

}  // namespace

std::string shape_text(const TensorView& view) {
  return std::string("[").append(joined(view.sizes, view.rank)).append("]");
}

std::string list_text(std::span<const int64_t> numbers) {
  return std::string("(").append(joined(numbers.data(), static_cast<int64_t>(numbers.size()))).append(")");
}

std::string device_text(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace fastdiff
