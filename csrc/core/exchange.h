// SPDX-License-Identifier: Apache-2.0
// Tensors of the calling library without its dispatcher: DLPack's table of C functions (version 1.3), which a
// tensor type carries as __dlpack_c_exchange_api__. Reading a tensor through it takes a few tens of
// nanoseconds, where a __dlpack__ capsule takes microseconds.
#pragma once

#include "core/python.h"

namespace fastdiff {

namespace dlpack {

struct ExchangeHeader {
  uint32_t major;
  uint32_t minor;
  ExchangeHeader* previous;
};

// The functions that are not used here keep their places as plain pointers.
struct ExchangeApi {
  static constexpr const char* kName = "dlpack_exchange_api";

  ExchangeHeader header;
  void* allocate;
  void* export_managed;
  void* import_managed;
  int (*borrow)(void* object, Tensor* out);  // may be null; -1: a Python exception is set
  int (*current_stream)(int32_t device_type, int32_t device_index, void** stream);
};

}  // namespace dlpack

// The exchange table of one tensor type, looked up once.
class Exchange {
 public:
  // Whether `object` can be read: it is of the exact type that has been seen first, not of a subclass, which
  // may be a tensor without memory.
  bool reads(PyObject* object) {
    if (Py_TYPE(object) == type_) return api_ != nullptr;
    return type_ == nullptr && adopt(Py_TYPE(object));
  }

  // False: it has no memory to read, or another thing is special about it. No exception is left behind.
  bool borrow(PyObject* object, dlpack::Tensor& tensor) const {
    if (api_->borrow(object, &tensor) == 0) return true;
    PyErr_Clear();
    return false;
  }

  bool current_stream(Device device, void** stream) const {
    if (api_->current_stream(dlpack::kCuda, device.index, stream) == 0) return true;
    PyErr_Clear();
    return false;
  }

 private:
  bool adopt(PyTypeObject* type) {
    PyObject* capsule =
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
      PyErr_Clear();
      return false;
    }
    const auto* api =
        static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, dlpack::ExchangeApi::kName));
    PyErr_Clear();
    Py_DECREF(capsule);  // the table lives as long as its library
    if (api == nullptr || api->header.major != dlpack::kMajorVersion || api->borrow == nullptr) return false;
    type_ = type;
    api_ = api;
    return true;
  }

  PyTypeObject* type_ = nullptr;
  const dlpack::ExchangeApi* api_ = nullptr;
};

// False: no kernel has its dtype, device or rank. The view points into `tensor`.
inline bool dlpack_view(const dlpack::Tensor& tensor, TensorView& view) {
  const std::optional<DType> dtype = dlpack::dtype_of(tensor.dtype);
  const std::optional<Device> device = dlpack::device_of(tensor.device);
  if (!dtype || !device || tensor.rank > kMaxRank || (tensor.rank > 0 && tensor.strides == nullptr))
    return false;
  view = {static_cast<char*>(tensor.data) + tensor.byte_offset,
          *dtype,
          tensor.rank,
          tensor.sizes,
          tensor.strides,
          *device};
  return true;
}

}  // namespace fastdiff
