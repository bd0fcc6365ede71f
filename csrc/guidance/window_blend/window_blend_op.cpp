// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.window_blend, functional and out= variants, and the tables that they keep.
#include <list>
#include <memory>
#include <mutex>

#include "core/host.h"
#include "guidance/window_blend/window_blend.h"

namespace fastdiff::window_blend {
namespace {

constexpr const char* kOp = "window_blend";
constexpr size_t kMostKept = 64;

// A table, where its kernels read it.
struct Kept {
  std::vector<int64_t> key;
  std::vector<int64_t> numbers;
  std::optional<Tensor> on_device;  // CUDA
  bool is_captured = false;         // a CUDA graph reads it, for as long as the graph lives: it stays

  Device device() const { return {static_cast<DeviceType>(key[0]), static_cast<int>(key[1])}; }
  const int64_t* data() const {
    return on_device ? static_cast<const int64_t*>(on_device->const_data_ptr()) : numbers.data();
  }
};

// The tables of the last calls, by the value of what they are made of: in a sampling loop the boxes are the
// same at each step, which then builds nothing, copies nothing to the device and waits for nothing.
class Tables {
 public:
  std::shared_ptr<const Kept> find(const Arguments& a, const Boxes& boxes, void* stream) {
    const Device device = a.views.device;
    const bool capturing = device.type == DeviceType::cuda && is_capturing(device.index, stream);
    const std::vector<int64_t> key = key_of(a, boxes);
    const std::lock_guard lock(mutex_);
    auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) { return kept->key == key; });
    if (found == kept_.end()) {
      kept_.push_front(build(a, boxes, key, capturing));
      found = kept_.begin();
      forget_oldest();
    } else if (found != kept_.begin()) {
      kept_.splice(kept_.begin(), kept_, found);
    }
    (*found)->is_captured |= capturing;
    return *found;
  }

 private:
  static std::vector<int64_t> key_of(const Arguments& a, const Boxes& boxes) {
    const Device device = a.views.device;
    std::vector<int64_t> key;
    key.reserve(boxes.numbers.size() + 8);
    key = {static_cast<int64_t>(device.type),
           device.index,
           a.views.size(0),
           a.views.size(-2),
           a.views.size(-1),
           a.height,
           a.width,
           boxes.circular};
    key.insert(key.end(), boxes.numbers.begin(), boxes.numbers.end());
    return key;
  }

  static std::shared_ptr<Kept> build(const Arguments& a, const Boxes& boxes, const std::vector<int64_t>& key,
                                     bool capturing) {
    const Device device = a.views.device;
    auto kept = std::make_shared<Kept>();
    kept->key = key;
    kept->numbers = make_table(a, boxes, tile_of(device.type));
    if (device.type == DeviceType::cpu) return kept;
    if (capturing)
      refuse(kOp, "boxes must have been used before a CUDA graph is captured with them, got new ones; ",
             "call it once on the same shapes first");
    const auto count = static_cast<int64_t>(kept->numbers.size());
    const Tensor host = torch::stable::from_blob(kept->numbers.data(), {count}, {1},
                                                 torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                                 torch::headeronly::ScalarType::Long);
    kept->on_device = empty_vector(device, count, DType::i64);
    torch::stable::copy_(*kept->on_device, host);  // waits: any stream may read it from now on
    return kept;
  }

  // Drops one table too many, on the device of the new one. Its memory is free for others at once, so nothing
  // may still read it.
  void forget_oldest() {
    if (kept_.size() <= kMostKept) return;
    const Kept& newest = *kept_.front();
    const auto oldest = std::find_if(kept_.rbegin(), kept_.rend(), [&](const auto& kept) {
      return !kept->is_captured && kept->device() == newest.device();
    });
    if (oldest->get() == &newest) return;
    if (newest.on_device) synchronize(newest.device().index);
    kept_.erase(std::next(oldest).base());
  }

  std::mutex mutex_;
  std::list<std::shared_ptr<Kept>> kept_;  // the last used first
};

// Never destroyed: at exit there may be no device any more to give its memory back to.
Tables& tables() {
  static Tables* const all = new Tables;
  return *all;
}

// The op's arguments as views. Tensors are borrowed from the call's own arguments.
class Call {
 public:
  Call(const Tensor& views, const std::vector<int64_t>& boxes, int64_t height, int64_t width, bool circular,
       const OptionalTensor& weights)
      : arguments_{view_of(kOp, "views", views), nullptr, height, width},
        on_(arguments_.views.device),
        boxes_{boxes, circular} {
    if (weights) {
      weights_ = view_of(kOp, "weights", *weights);
      arguments_.weights = &weights_;
    }
    shape_ = check(arguments_);
    table_ = tables().find(arguments_, boxes_, on_.stream());
  }
  Call(const Call&) = delete;

  // In the order in which the views have their dimensions in memory.
  Tensor make_result() const {
    const TensorView& x = arguments_.views;
    const TensorView like{nullptr, x.dtype, shape_.rank, shape_.size, x.strides + 1, x.device};
    return empty_output(like, shape_.rank, shape_.size, x.dtype);
  }

  void run(const Tensor& out) const {
    const TensorView result = view_of(kOp, "out", out);
    const Device device = arguments_.views.device;
    const Params params = prepare(arguments_, shape_, result, table_->data(),
                                  static_cast<int64_t>(table_->numbers.size()), tile_of(device.type));
    if (result.numel() == 0) return;
    if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on_.stream());
    const int64_t units = params.units();
    parallel_ranges(units, 1, params.numel_read() < kSerialNumel ? units + 1 : 1,
                    [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
  }

 private:
  Arguments arguments_;
  On on_;
  Boxes boxes_;
  TensorView weights_;
  Shape shape_;
  std::shared_ptr<const Kept> table_;
};

Tensor functional(Tensor views, std::vector<int64_t> boxes, int64_t height, int64_t width, bool circular,
                  OptionalTensor weights) {
  const Call call(views, boxes, height, width, circular, weights);
  Tensor result = call.make_result();
  call.run(result);
  return result;
}

void out(Tensor views, std::vector<int64_t> boxes, int64_t height, int64_t width, bool circular,
         OptionalTensor weights, Tensor result) {
  Call(views, boxes, height, width, circular, weights).run(result);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("window_blend", TORCH_BOX(&functional));
  m.impl("window_blend.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("window_blend", TORCH_BOX(&functional));
  m.impl("window_blend.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::window_blend
