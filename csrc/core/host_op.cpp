// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include "core/host.h"

namespace fastdiff {
namespace {

constexpr struct {
  DType dtype;
  int32_t code;  // c10::ScalarType
} kCodes[] = {{DType::f32, 6}, {DType::f16, 5}, {DType::bf16, 15}, {DType::f64, 7},
              {DType::c64, 9}, {DType::u8, 0},  {DType::b8, 11},   {DType::i64, 4}};

// libtorch_cuda.so is there only in a CUDA build of torch; a library that named its symbols could not be
// loaded by a CPU-only torch. So the stream function is looked up in the copy that torch has loaded.
void* current_cuda_stream(int device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (!getter) throw Refusal("fastdiff: torch has no CUDA support here (libtorch_cuda.so is not loaded)");
  void* stream = nullptr;
  if (getter(device, &stream) != 0) throw Refusal("fastdiff: torch gave no current CUDA stream");
  return stream;
}

}  // namespace

std::optional<DType> dtype_from_code(int64_t code) {
  for (const auto& known : kCodes)
    if (known.code == code) return known.dtype;
  return std::nullopt;
}

int32_t code_from_dtype(DType dtype) {
  for (const auto& known : kCodes)
    if (known.dtype == dtype) return known.code;
  return -1;
}

TensorView view_of(const char* op, const Argument& argument, const Tensor& tensor) {
  AtenTensorHandle handle = tensor.get();
  int32_t code = 0, device_type = 0, device_index = 0, layout = 0;
  int64_t rank = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(handle, &layout));
  if (layout != aoti_torch_layout_strided()) refuse(op, argument, " must be a dense (strided) tensor");
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &code));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &rank));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  const std::optional<DType> dtype = dtype_from_code(code);
  if (!dtype)
    refuse(op, argument,
           " must be float32, float16, bfloat16, float64, complex64, uint8, bool or int64, got ScalarType ",
           code);
  if (rank > kMaxRank) refuse(op, argument, " must have at most ", kMaxRank, " dimensions, got ", rank);
  const bool cpu = device_type == aoti_torch_device_type_cpu();
  if (!cpu && device_type != aoti_torch_device_type_cuda())
    refuse(op, argument, " must be on a CPU or CUDA device, got DeviceType ", device_type);
  void* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
  const Device device = cpu ? Device{} : Device{DeviceType::cuda, device_index};
  return {data, *dtype, static_cast<int>(rank), sizes, strides, device};
}

std::vector<TensorView> views_of(const char* op, const char* argument, const std::vector<Tensor>& tensors) {
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (const Tensor& tensor : tensors)
    views.push_back(view_of(op, Argument(argument, static_cast<int64_t>(views.size())), tensor));
  return views;
}

Tensor empty_output(const TensorView& like, int rank, const int64_t* sizes, DType dtype) {
  int64_t strides[kMaxRank];
  const bool same_shape = std::equal(sizes, sizes + rank, like.sizes);
  if (same_shape && is_dense(like)) {
    std::copy_n(like.strides, rank, strides);
  } else {
    // As torch.empty_like does for layouts with gaps or overlaps: dense, in the order of the strides.
    int order[kMaxRank];
    for (int d = 0; d < rank; ++d) order[d] = rank - 1 - d;
    if (same_shape) {
      std::stable_sort(order, order + rank, [&](int a, int b) { return like.strides[a] < like.strides[b]; });
    }
    int64_t next = 1;
    for (int n = 0; n < rank; ++n) {
      strides[order[n]] = next;
      next *= std::max<int64_t>(1, sizes[order[n]]);
    }
  }
  const bool cpu = like.device.type == DeviceType::cpu;
  const int32_t device_type = cpu ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes, strides, code_from_dtype(dtype),
                                                         device_type, like.device.index, &handle));
  return Tensor(handle);
}

On::On(Device device) {
  if (device.type == DeviceType::cpu) return;
  guard_.emplace(device.index);
  stream_ = current_cuda_stream(device.index);
}

}  // namespace fastdiff
