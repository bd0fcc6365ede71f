// SPDX-License-Identifier: Apache-2.0
// torch.ops.fastdiff.linear_step, functional and out= variants.
#include <array>

#include "core/host.h"
#include "solver/linear_step/linear_step.h"

namespace fastdiff::linear_step {
namespace {

constexpr const char* kOp = "linear_step";

using OptionalInts = std::optional<std::vector<int64_t>>;

// The op's arguments as views. Tensors are borrowed from the call's own arguments.
class Call {
 public:
  Call(const std::vector<Tensor>& inputs, const Tensor& table, const OptionalTensor& step,
       const std::vector<int64_t>& store, const OptionalTensor& rng, const OptionalTensor& gate_table,
       const OptionalTensor& mask, const OptionalInts& channels, const OptionalTensor& maps,
       const OptionalInts& map_index)
      : inputs_(views_of(kOp, "inputs", inputs)) {
    for (const int64_t code : store) store_.push_back(store_dtype(code));
    arguments.inputs = inputs_;
    arguments.table = view_of(kOp, "table", table);
    arguments.step = optional_view("step", step);
    arguments.rng = optional_view("rng", rng);
    arguments.gate_table = optional_view("gate_table", gate_table);
    arguments.mask = optional_view("mask", mask);
    arguments.maps = optional_view("maps", maps);
    if (channels) arguments.channels = *channels;
    if (map_index) arguments.map_index = *map_index;
    arguments.store = store_;
  }
  Call(const Call&) = delete;

  Arguments arguments;

 private:
  int store_dtype(int64_t code) const {
    if (code < 0) return -1;
    const std::optional<DType> dtype = dtype_from_code(code);
    if (!dtype)
      refuse(kOp, Argument("store", static_cast<int64_t>(store_.size())),
             " must be -1 or a known ScalarType, got ", code);
    return static_cast<int>(*dtype);
  }

  const TensorView* optional_view(const char* name, const OptionalTensor& tensor) {
    if (!tensor) return nullptr;
    return &(optional_[optional_count_++] = view_of(kOp, name, *tensor));
  }

  std::vector<TensorView> inputs_;
  std::vector<int> store_;
  std::array<TensorView, 5> optional_;
  int optional_count_ = 0;
};

void run(const Call& call, const Shape& shape, const std::vector<TensorView>& outputs) {
  const Params params = prepare(call.arguments, shape, outputs);
  const int64_t total = params.samples * params.numel;
  if (total == 0) return;
  const Device device = call.arguments.inputs[0].device;
  const On on(device);
  if (device.type == DeviceType::cuda) return launch_cuda(params, device.index, on.stream());
  parallel_ranges(total, kTile, kSerialNumel,
                  [&](int64_t begin, int64_t end) { isa::run<Cpu>(params, begin, end); });
}

std::vector<Tensor> functional(std::vector<Tensor> inputs, Tensor table, OptionalTensor step,
                               std::vector<int64_t> store, OptionalTensor rng, OptionalTensor gate_table,
                               OptionalTensor mask, OptionalInts channels, OptionalTensor maps,
                               OptionalInts map_index) {
  const Call call(inputs, table, step, store, rng, gate_table, mask, channels, maps, map_index);
  const Shape shape = check(call.arguments);
  std::vector<Tensor> outputs;
  for (const int dtype : call.arguments.store)
    if (dtype >= 0)
      outputs.push_back(
          empty_output(call.arguments.inputs[0], shape.rank, shape.size, static_cast<DType>(dtype)));
  run(call, shape, views_of(kOp, "out", outputs));
  return outputs;
}

void out(std::vector<Tensor> inputs, Tensor table, OptionalTensor step, std::vector<int64_t> store,
         OptionalTensor rng, OptionalTensor gate_table, OptionalTensor mask, OptionalInts channels,
         OptionalTensor maps, OptionalInts map_index, std::vector<Tensor> outputs) {
  const Call call(inputs, table, step, store, rng, gate_table, mask, channels, maps, map_index);
  const Shape shape = check(call.arguments);
  run(call, shape, views_of(kOp, "out", outputs));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("linear_step", TORCH_BOX(&functional));
  m.impl("linear_step.out", TORCH_BOX(&out));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("linear_step", TORCH_BOX(&functional));
  m.impl("linear_step.out", TORCH_BOX(&out));
}

}  // namespace

}  // namespace fastdiff::linear_step
