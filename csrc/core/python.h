// SPDX-License-Identifier: Apache-2.0
// What the pybind11 adaptors (module.cpp, *_py.cpp) share: rooms that register themselves, and arrays of any
// library as views, through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/view.h"

namespace fastdiff {

namespace py = pybind11;

// A room adds its functions to the module by one static object in its *_py.cpp, so no file lists the rooms:
//   const PyRoom room([](py::module_& m) { m.def("linear_step", &linear_step); });
class PyRoom {
 public:
  using Bind = void (*)(py::module_&);

  explicit PyRoom(Bind bind) : bind_(bind), next_(last()) { last() = this; }
  PyRoom(const PyRoom&) = delete;
  PyRoom& operator=(const PyRoom&) = delete;

  static void bind_all(py::module_& m) {
    for (const PyRoom* room = last(); room != nullptr; room = room->next_) room->bind_(m);
  }

 private:
  // Inside a function because static objects of different files are constructed in no fixed order.
  static const PyRoom*& last() {
    static const PyRoom* room = nullptr;
    return room;
  }

  Bind bind_;
  const PyRoom* next_;
};

// The binary interface of DLPack 1.0, and of the unversioned one before it.
namespace dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaPinned = 3, kCudaManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

inline constexpr uint32_t kMajorVersion = 1;
inline constexpr uint64_t kReadOnly = 1;  // a bit of ManagedVersioned::flags

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t rank;
  DataType dtype;
  int64_t* sizes;    // [rank]
  int64_t* strides;  // [rank], in elements; null: row-major without gaps
  uint64_t byte_offset;
};

struct Managed {
  static constexpr const char* kName = "dltensor";
  static constexpr const char* kUsedName = "used_dltensor";

  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  static constexpr const char* kName = "dltensor_versioned";
  static constexpr const char* kUsedName = "used_dltensor_versioned";

  uint32_t major;
  uint32_t minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

inline std::optional<DType> dtype_of(DataType type) {
  static constexpr struct {
    TypeCode code;
    uint8_t bits;
    DType dtype;
  } kTypes[] = {
      {kFloat, 32, DType::f32}, {kFloat, 16, DType::f16}, {kBfloat, 16, DType::bf16},
      {kFloat, 64, DType::f64}, {kInt, 64, DType::i64},   {kComplex, 64, DType::c64},
      {kUInt, 8, DType::u8},    {kBool, 8, DType::b8},    {kInt, 32, DType::i32},
      {kInt, 8, DType::i8},
  };
  for (const auto& known : kTypes)
    if (known.code == type.code && known.bits == type.bits && type.lanes == 1) return known.dtype;
  return std::nullopt;
}

inline bool on_cuda(int32_t device_type) {
  return device_type == kCuda || device_type == kCudaManaged;
}

inline std::optional<fastdiff::Device> device_of(Device device) {
  if (on_cuda(device.type)) return fastdiff::Device{fastdiff::DeviceType::cuda, device.index};
  if (device.type == kCpu || device.type == kCudaPinned)
    return fastdiff::Device{fastdiff::DeviceType::cpu, 0};
  return std::nullopt;
}

}  // namespace dlpack

enum class Access { read, write };

// An array of any library that speaks DLPack (NumPy, CuPy, PyTorch, JAX, ...), borrowed for as long as this
// object lives: the memory is the caller's, nothing is copied.
class DlpackTensor {
 public:
  // `what` begins every refusal: "fastdiff::linear_step: inputs[2]". `stream` is the cudaStream_t that the
  // kernel will run on; the array's owner makes it wait for the work still pending there. CPU arrays need
  // none.
  DlpackTensor(py::handle array, const std::string& what, Access access = Access::read,
               uintptr_t stream = 0) {
    if (!py::hasattr(array, "__dlpack__") || !py::hasattr(array, "__dlpack_device__"))
      throw Refusal(what + " must be an array that supports DLPack, got " + type_name(array));
    const py::capsule capsule = export_capsule(array, stream);
    const bool versioned = PyCapsule_IsValid(capsule.ptr(), dlpack::ManagedVersioned::kName) != 0;
    if (versioned) {
      const auto* managed = take<dlpack::ManagedVersioned>(capsule);
      check(*managed, what, access);
      adopt(managed->tensor, what);
    } else {
      adopt(take<dlpack::Managed>(capsule)->tensor, what);
    }
  }

  // view() points into this object.
  DlpackTensor(const DlpackTensor&) = delete;
  DlpackTensor& operator=(const DlpackTensor&) = delete;

  const TensorView& view() const { return view_; }

 private:
  static py::capsule export_capsule(py::handle array, uintptr_t stream) {
    const auto device = array.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
    py::dict options;
    // In DLPack's numbering 1 is CUDA's default stream; 0 is not allowed because it could mean two things.
    if (dlpack::on_cuda(device.first)) options["stream"] = stream == 0 ? uintptr_t{1} : stream;
    const py::object exporter = array.attr("__dlpack__");
    try {
      return exporter(**options, py::arg("max_version") = py::make_tuple(dlpack::kMajorVersion, 0));
    } catch (py::error_already_set& error) {
      // A library from before DLPack 1.0 does not know the argument.
      if (!error.matches(PyExc_TypeError)) throw;
    }
    return exporter(**options);
  }

  // Takes the tensor out of its capsule: renaming it is how DLPack hands over the duty to call the deleter.
  template <class M>
  const M* take(const py::capsule& capsule) {
    auto* managed = static_cast<M*>(PyCapsule_GetPointer(capsule.ptr(), M::kName));
    if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), M::kUsedName) != 0) {
      throw py::error_already_set();
    }
    const auto release = [](void* p) {
      auto* owned = static_cast<M*>(p);
      if (owned->deleter != nullptr) owned->deleter(owned);
    };
    owner_ = {managed, release};
    return managed;
  }

  static void check(const dlpack::ManagedVersioned& managed, const std::string& what, Access access) {
    if (managed.major != dlpack::kMajorVersion)
      throw Refusal(what + " must speak DLPack 1, got version " + std::to_string(managed.major));
    if (access == Access::write && (managed.flags & dlpack::kReadOnly) != 0)
      throw Refusal(what + " must be writable, got a read-only array");
  }

  void adopt(const dlpack::Tensor& tensor, const std::string& what) {
    if (tensor.rank > kMaxRank)
      throw Refusal(what + " must have at most " + std::to_string(kMaxRank) + " dimensions, got " +
                    std::to_string(tensor.rank));
    view_.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view_.dtype = dtype_of(tensor.dtype, what);
    view_.device = device_of(tensor.device, what);
    view_.rank = tensor.rank;
    view_.sizes = tensor.sizes;
    view_.strides = tensor.strides != nullptr ? tensor.strides : row_major(tensor);
  }

  const int64_t* row_major(const dlpack::Tensor& tensor) {
    int64_t stride = 1;
    for (int d = tensor.rank - 1; d >= 0; --d) {
      strides_[d] = stride;
      stride *= tensor.sizes[d];
    }
    return strides_.data();
  }

  static DType dtype_of(dlpack::DataType type, const std::string& what) {
    if (const std::optional<DType> dtype = dlpack::dtype_of(type)) return *dtype;
    throw Refusal(what +
                  " must be float32, float16, bfloat16, float64, complex64, uint8, bool or int64, "
                  "got DLPack type " +
                  std::to_string(type.code) + " of " + std::to_string(type.bits) + " bits");
  }

  static Device device_of(dlpack::Device device, const std::string& what) {
    if (const std::optional<Device> known = dlpack::device_of(device)) return *known;
    throw Refusal(what + " must be on a CPU or CUDA device, got DLPack device " +
                  std::to_string(device.type));
  }

  static std::string type_name(py::handle object) {
    return py::str(py::type::handle_of(object).attr("__name__"));
  }

  std::unique_ptr<void, void (*)(void*)> owner_{nullptr, [](void*) {}};
  std::array<int64_t, kMaxRank> strides_{};  // [rank], for an array that comes without any
  TensorView view_;
};

// An array that may be None.
class OptionalArray {
 public:
  OptionalArray(py::handle array, const std::string& what, Access access = Access::read,
                uintptr_t stream = 0) {
    if (!array.is_none()) held_.emplace(array, what, access, stream);
  }
  std::optional<TensorView> view() const { return held_ ? std::optional(held_->view()) : std::nullopt; }

 private:
  std::optional<DlpackTensor> held_;
};

// Device memory for intermediate results, which the caller of a torch-free function gives as a uint8 array.
class Scratch {
 public:
  // `op`: begins every refusal: "fastdiff::dynamic_threshold: ". None is enough where `bytes` is 0.
  Scratch(py::handle array, const std::string& op, int64_t bytes, Device device, uintptr_t stream) {
    if (bytes == 0) return;
    if (!array.is_none()) held_.emplace(array, op + "scratch", Access::write, stream);
    if (!held_ || !fits(held_->view(), bytes, device))
      throw Refusal(
          op + "scratch must be " + std::to_string(bytes) + " contiguous uint8 on " + device_text(device) +
          ", aligned to 8 bytes, got " +
          (held_ ? std::string(name(held_->view().dtype)) + " " + shape_text(held_->view()) : "none"));
    data_ = held_->view().data;
  }

  void* data() const { return data_; }

 private:
  static bool fits(const TensorView& view, int64_t bytes, Device device) {
    return view.device == device && view.dtype == DType::u8 && view.rank == 1 && view.strides[0] == 1 &&
           view.sizes[0] >= bytes && reinterpret_cast<uintptr_t>(view.data) % sizeof(int64_t) == 0;
  }

  std::optional<DlpackTensor> held_;
  void* data_ = nullptr;
};

}  // namespace fastdiff
