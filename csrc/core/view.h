// SPDX-License-Identifier: Apache-2.0
// A tensor as the kernels' front desks see it: no framework, no ownership.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/dtype.h"

namespace fastdiff {

enum class DeviceType : int8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

inline constexpr int kMaxRank = 12;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  const int64_t* sizes = nullptr;    // [rank]
  const int64_t* strides = nullptr;  // [rank], in elements
  Device device;

  int64_t size(int dim) const { return sizes[dim < 0 ? dim + rank : dim]; }
  int64_t stride(int dim) const { return strides[dim < 0 ? dim + rank : dim]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= sizes[d];
    return n;
  }
};

// "[2, 4, 64, 64]"
std::string shape_text(const TensorView& view);
std::string device_text(Device device);
std::string list_text(std::span<const int64_t> numbers);  // "(0, 3)"

// An argument's name, or one element of a list argument; made into text only when a check fails.
struct Argument {
  const char* name;
  int64_t element;
  Argument(const char* argument, int64_t index = -1) : name(argument), element(index) {}
  std::string text() const {
    return element < 0 ? name : std::string(name).append("[").append(std::to_string(element)) + "]";
  }
};

// Every refusal reads "fastdiff::<op>: <argument> <what is expected>, got <what came>".
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::string text = std::string("fastdiff::").append(op).append(": ");
  const auto append = [&text](const auto& part) {
    using Part = std::decay_t<decltype(part)>;
    if constexpr (std::is_same_v<Part, Argument>) {
      text += part.text();
    } else if constexpr (std::is_arithmetic_v<Part>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (append(parts), ...);
  throw Refusal(text);
}

}  // namespace fastdiff
