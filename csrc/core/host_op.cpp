// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include <utility>

#include "core/host.h"

namespace fastdiff {
namespace {

constexpr struct {
  DType dtype;
  int32_t code;  // c10::ScalarType
} kCodes[] = {{DType::f32, 6}, {DType::f16, 5}, {DType::bf16, 15}, {DType::f64, 7}, {DType::c64, 9},
              {DType::u8, 0},  {DType::b8, 11}, {DType::i64, 4},   {DType::i32, 3}, {DType::i8, 1}};

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

std::optional<TensorView> optional_view(const char* op, const char* argument, const OptionalTensor& tensor) {
  return tensor ? std::optional(view_of(op, argument, *tensor)) : std::nullopt;
}

std::vector<TensorView> views_of(const char* op, const char* argument, const std::vector<Tensor>& tensors) {
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (const Tensor& tensor : tensors)
    views.push_back(view_of(op, Argument(argument, static_cast<int64_t>(views.size())), tensor));
  return views;
}

namespace {

// Which of two dimensions lies inside the other: > 0 if b does. 0 where the strides do not say: a stride of 0
// (expanded), or equal strides and a that is no larger.
int inside(const TensorView& view, int a, int b) {
  const int64_t x = view.strides[a], y = view.strides[b];
  if (x == 0 || y == 0) return 0;
  if (x != y) return x < y ? -1 : 1;
  return view.sizes[a] > view.sizes[b] ? 1 : 0;
}

// Strides without gaps in the order in which `like` has its dimensions in memory, as torch.empty_like chooses
// them. The comparison is no strict order (0 means "look further"), hence an insertion sort and no std::sort.
void dense_strides(const TensorView& like, int64_t* strides) {
  int order[kMaxRank];  // innermost first
  for (int d = 0; d < like.rank; ++d) order[d] = like.rank - 1 - d;
  for (int next = 1; next < like.rank; ++next) {
    int moving = next;
    for (int other = next - 1; other >= 0; --other) {
      const int comparison = inside(like, order[other], order[moving]);
      if (comparison < 0) break;
      if (comparison == 0) continue;
      std::swap(order[other], order[moving]);
      moving = other;
    }
  }
  int64_t step = 1;
  for (int n = 0; n < like.rank; ++n) {
    strides[order[n]] = step;
    if (like.sizes[order[n]] > 1) step *= like.sizes[order[n]];
  }
}

Tensor empty_strided(const TensorView& sizes, const int64_t* strides, DType dtype) {
  const bool cpu = sizes.device.type == DeviceType::cpu;
  const int32_t device_type = cpu ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.rank, sizes.sizes, strides, code_from_dtype(dtype), device_type, sizes.device.index, &handle));
  return Tensor(handle);
}

}  // namespace

Tensor empty_contiguous(const TensorView& sizes) {
  int64_t strides[kMaxRank];
  int64_t step = 1;
  for (int d = sizes.rank - 1; d >= 0; --d) {
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes.sizes[d]);
  }
  return empty_strided(sizes, strides, sizes.dtype);
}

Tensor empty_output(const TensorView& like, int rank, const int64_t* sizes, DType dtype) {
  const TensorView result{nullptr, dtype, rank, sizes, sizes, like.device};
  if (!std::equal(sizes, sizes + rank, like.sizes)) return empty_contiguous(result);
  if (is_dense(like)) return empty_strided(result, like.strides, dtype);
  int64_t strides[kMaxRank];
  dense_strides(like, strides);
  return empty_strided(result, strides, dtype);
}

Team torch_team() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t parts, Team::Part part, const void* body) {
            torch::stable::parallel_for(0, parts, 1, [part, body](int64_t begin, int64_t end) {
              for (int64_t n = begin; n < end; ++n) part(body, n);
            });
          }};
}

Tensor empty_vector(Device device, int64_t size, DType dtype) {
  const int64_t stride = 1;
  return empty_output({nullptr, dtype, 1, &size, &stride, device}, 1, &size, dtype);
}

On::On(Device device) {
  if (device.type == DeviceType::cpu) return;
  guard_.emplace(device.index);
  stream_ = current_cuda_stream(device.index);
}

}  // namespace fastdiff
