// SPDX-License-Identifier: Apache-2.0
// The front desk of linear_step: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <array>
#include <utility>

#include "core/cache.h"
#include "core/layout.h"
#include "solver/linear_step/linear_step_math.h"

namespace fastdiff::linear_step {
namespace {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fastdiff::refuse("linear_step", parts...);
}

bool is_coefficient_dtype(DType t) {
  return t == DType::f32 || t == DType::f64;
}

int64_t batch(const Shape& shape) {
  return shape.rank ? shape.size[0] : 1;
}

// ---- inputs ---------------------------------------------------------------------------------------

void check_dtype(const TensorView& x, const Argument& argument, bool complex) {
  if (complex ? x.dtype == DType::c64 : is_real_float(x.dtype)) return;
  refuse(argument, " must be ",
         complex ? "complex64 like inputs[0]" : "float32, float16, bfloat16 or float64", ", got ",
         name(x.dtype));
}

Shape check_inputs(std::span<const TensorView> inputs) {
  if (inputs.empty() || inputs.size() > kMaxInputs)
    refuse("inputs must be 1 to ", kMaxInputs, " tensors, got ", inputs.size());
  const TensorView& first = inputs[0];
  if (first.rank > kMaxRank)
    refuse("inputs[0] must have at most ", kMaxRank, " dimensions, got ", first.rank);
  Shape shape{first.rank, {}};
  std::copy_n(first.sizes, first.rank, shape.size);
  for (size_t k = 0; k < inputs.size(); ++k) {
    const TensorView& x = inputs[k];
    if (x.rank != first.rank)
      refuse(Argument("inputs", k), " must have ", first.rank, " dimensions like inputs[0], got shape ",
             shape_text(x));
    if (x.device != first.device)
      refuse(Argument("inputs", k), " must be on ", device_text(first.device), " like inputs[0], got ",
             device_text(x.device));
    check_dtype(x, Argument("inputs", k), first.dtype == DType::c64);
    if (x.rank && shape.size[0] == 1) shape.size[0] = x.sizes[0];
  }
  for (size_t k = 0; k < inputs.size(); ++k) {
    for (int d = 0; d < shape.rank; ++d) {
      const int64_t got = inputs[k].sizes[d];
      if (got == shape.size[d] || (d == 0 && got == 1)) continue;
      TensorView expected = inputs[k];
      expected.sizes = shape.size;
      refuse(Argument("inputs", k), " must have shape ", shape_text(expected),
             " (or 1 in its first dimension), got ", shape_text(inputs[k]));
    }
  }
  return shape;
}

// Whether a table has a dimension for the samples.
bool is_per_sample(const TensorView& table, bool has_step) {
  return table.rank - 2 - (has_step ? 1 : 0) == 1;
}

Table table_of(const TensorView& view, bool has_step) {
  Table table{view.data, 0, 0, view.stride(-2), view.stride(-1), view.dtype == DType::f64};
  if (has_step) table.step_stride = view.stride(0);
  if (is_per_sample(view, has_step) && view.size(-3) != 1) table.sample_stride = view.stride(-3);
  return table;
}

// ---- the other tensors ----------------------------------------------------------------------------

void check_device(const Arguments& a, const TensorView& tensor, const Argument& argument) {
  if (tensor.device != a.inputs[0].device)
    refuse(argument, " must be on ", device_text(a.inputs[0].device), " like inputs[0], got ",
           device_text(tensor.device));
}

int rows_of(const Arguments& a) {
  if (a.table.rank < 2)
    refuse("table must have at least 2 dimensions [M, K + M + 3], got shape ", shape_text(a.table));
  const int64_t rows = a.table.size(-2);
  if (rows < 1 || rows > kMaxRows)
    refuse("table must have 1 to ", kMaxRows, " rows (dimension -2), got shape ", shape_text(a.table));
  return static_cast<int>(rows);
}

// [S?, B?, M, columns]
void check_table(const Arguments& a, const Shape& shape, const TensorView& table, const Argument& argument,
                 int extra) {
  check_device(a, table, argument);
  if (!is_coefficient_dtype(table.dtype))
    refuse(argument, " must be float32 or float64, got ", name(table.dtype));
  const int64_t inputs = static_cast<int64_t>(a.inputs.size());
  const int rows = rows_of(a);
  const int64_t columns = inputs + rows + extra;
  if (table.rank < 2 || table.size(-2) != rows || table.size(-1) != columns)
    refuse(argument, " must end in [", rows, ", ", columns, "] = [M, K + M + ", extra, "] for K = ", inputs,
           " inputs and M = ", rows, " rows, got shape ", shape_text(table));
  const int leading = table.rank - 2 - (a.step ? 1 : 0);
  if (leading < 0 || leading > 1)
    refuse(argument, " must have shape ",
           a.step ? "[S, M, W] or [S, B, M, W] (a step is given)" : "[M, W] or [B, M, W]", ", got ",
           shape_text(table));
  if (a.step && table.size(0) < 1)
    refuse(argument, " must have at least one step, got shape ", shape_text(table));
  if (a.step && table.size(0) != a.table.size(0))
    refuse(argument, " must have as many steps as table (", a.table.size(0), "), got shape ",
           shape_text(table));
  if (leading == 1 && table.size(-3) != 1 && table.size(-3) != batch(shape))
    refuse(argument, " must have 1 or ", batch(shape), " samples in dimension ", table.rank - 3,
           ", got shape ", shape_text(table));
}

void check_step(const Arguments& a) {
  if (!a.step) return;
  check_device(a, *a.step, "step");
  if (a.step->dtype != DType::i64) refuse("step must be int64, got ", name(a.step->dtype));
  if (a.step->numel() != 1) refuse("step must have one element, got shape ", shape_text(*a.step));
  if (a.step->device.type != DeviceType::cpu)
    return;  // on a GPU the kernel checks it: reading it here would wait
  const int64_t step = *static_cast<const int64_t*>(a.step->data);
  if (step < 0 || step >= a.table.size(0))
    refuse("step must be in 0..", a.table.size(0) - 1, " (the table has ", a.table.size(0), " steps), got ",
           step);
}

void check_rng(const Arguments& a, const Shape& shape) {
  if (!a.rng) return;
  check_device(a, *a.rng, "rng");
  if (a.rng->dtype != DType::i64) refuse("rng must be int64, got ", name(a.rng->dtype));
  const bool shared = a.rng->rank == 1, per_sample = a.rng->rank == 2 && a.rng->size(0) == batch(shape);
  if (!(shared || per_sample) || a.rng->size(-1) != 2 || a.rng->stride(-1) != 1)
    refuse("rng must be (seed, offset) of shape [2], or [", batch(shape),
           ", 2] per sample, contiguous, got shape ", shape_text(*a.rng));
}

void check_gate(const Arguments& a, const Shape& shape) {
  const bool gates = a.mask || !a.channels.empty();
  if (!a.gate_table) {
    if (gates) refuse("gate_table is needed with ", a.mask ? "mask" : "channels", ", got none");
    return;
  }
  if (!gates) refuse("mask or channels is needed with gate_table, got neither");
  check_table(a, shape, *a.gate_table, "gate_table", 1);
  if (!a.channels.empty()) {
    const int64_t channels = shape.rank > 1 ? shape.size[1] : 0;
    if (shape.rank < 2) refuse("channels needs inputs of at least 2 dimensions, got ", shape.rank);
    if (a.channels.size() != 2 || a.channels[0] < 0 || a.channels[0] > a.channels[1] ||
        a.channels[1] > channels)
      refuse("channels must be (begin, end) with 0 <= begin <= end <= ", channels, ", got ",
             list_text(a.channels));
  }
  if (!a.mask) return;
  check_device(a, *a.mask, "mask");
  if (!is_real_float(a.mask->dtype) && a.mask->dtype != DType::b8 && a.mask->dtype != DType::u8)
    refuse("mask must be bool, uint8 or a real float, got ", name(a.mask->dtype));
  bool fits = a.mask->rank == shape.rank;
  for (int d = 0; fits && d < shape.rank; ++d)
    fits = a.mask->sizes[d] == 1 || a.mask->sizes[d] == shape.size[d];
  TensorView expected = a.inputs[0];
  expected.sizes = shape.size;
  if (!fits)
    refuse("mask must broadcast to ", shape_text(expected), " (same rank), got shape ", shape_text(*a.mask));
}

void check_maps(const Arguments& a, const Shape& shape) {
  if (!a.maps) {
    if (!a.map_index.empty()) refuse("maps is needed with map_index, got none");
    return;
  }
  check_device(a, *a.maps, "maps");
  if (!is_real_float(a.maps->dtype)) refuse("maps must be a real float, got ", name(a.maps->dtype));
  const int leading = a.step ? 2 : 1;
  bool fits = shape.rank >= 1 && a.maps->rank == leading + shape.rank - 1;
  for (int d = 1; fits && d < shape.rank; ++d) fits = a.maps->sizes[leading + d - 1] == shape.size[d];
  if (fits && a.step) fits = a.maps->sizes[0] == a.table.size(0);
  if (!fits)
    refuse("maps must have shape ", a.step ? "[S, P, *sample]" : "[P, *sample]",
           " with the inputs' sample shape, got ", shape_text(*a.maps));
  const int64_t count = a.maps->sizes[leading - 1];
  const size_t expected = rows_of(a) * a.inputs.size();
  if (a.map_index.size() != expected)
    refuse("map_index must have M * K = ", expected, " entries, got ", a.map_index.size());
  for (size_t e = 0; e < expected; ++e)
    if (a.map_index[e] < -1 || a.map_index[e] >= std::min<int64_t>(count, 128))
      refuse(Argument("map_index", e), " must be -1 or below ", std::min<int64_t>(count, 128), ", got ",
             a.map_index[e]);
}

void check_store(const Arguments& a) {
  const int rows = rows_of(a);
  if (static_cast<int>(a.store.size()) != rows)
    refuse("store must have M = ", rows, " entries, got ", a.store.size());
  if (std::all_of(a.store.begin(), a.store.end(), [](int dtype) { return dtype < 0; }))
    refuse("store must store at least one row, got none");
  const bool complex = a.inputs[0].dtype == DType::c64;
  for (size_t i = 0; i < a.store.size(); ++i) {
    if (a.store[i] < 0) continue;
    const auto dtype = static_cast<DType>(a.store[i]);
    if (complex ? dtype != DType::c64 : !is_real_float(dtype))
      refuse(Argument("store", i), " must be ",
             complex ? "complex64 like the inputs" : "float32, float16, bfloat16 or float64", ", got ",
             name(dtype));
  }
}

// The coefficients of noise, as the kernel will see them.
bool uses_noise(const Arguments& a, const TensorView& tensor) {
  const Table table = table_of(tensor, a.step != nullptr);
  const int64_t step = a.step ? *static_cast<const int64_t*>(a.step->data) : 0;
  const bool wide = std::any_of(a.inputs.begin(), a.inputs.end(),
                                [](const TensorView& x) { return x.dtype == DType::f64; });
  const int rows = rows_of(a), column = static_cast<int>(a.inputs.size()) + rows;
  const int64_t samples = table.sample_stride ? tensor.size(-3) : 1;
  for (int64_t b = 0; b < samples; ++b)
    for (int i = 0; i < rows; ++i)
      if (wide ? coefficient<double>(table, step, b, i, column) != 0.0
               : coefficient<float>(table, step, b, i, column) != 0.0f)
        return true;
  return false;
}

void check_noise(const Arguments& a) {
  if (a.rng || a.inputs[0].device.type != DeviceType::cpu) return;  // on a GPU the kernel checks it
  for (const auto& [table, name] : {std::pair{&a.table, "table"}, std::pair{a.gate_table, "gate_table"}})
    if (table && uses_noise(a, *table))
      refuse("rng is needed: the noise column of ", name, " is not zero at this step, got none");
}

// ---- outputs --------------------------------------------------------------------------------------

void check_disjoint(const TensorView& out, const Argument& argument, const TensorView* other,
                    const Argument& name) {
  if (other && overlap(out, *other) != Overlap::none) refuse(argument, " must not share memory with ", name);
}

void check_outputs(const Arguments& a, const Shape& shape, std::span<const TensorView> outputs) {
  const size_t stored = std::count_if(a.store.begin(), a.store.end(), [](int dtype) { return dtype >= 0; });
  if (outputs.size() != stored)
    refuse("out must have ", stored, " tensors, one per stored row, got ", outputs.size());
  size_t o = 0;
  for (const int dtype : a.store) {
    if (dtype < 0) continue;
    const Argument argument = Argument("out", o);
    const TensorView& out = outputs[o++];
    if (out.dtype != static_cast<DType>(dtype))
      refuse(argument, " must be ", name(static_cast<DType>(dtype)), " as in store, got ", name(out.dtype));
    TensorView expected = out;
    expected.rank = shape.rank;
    expected.sizes = shape.size;
    if (out.rank != shape.rank || !std::equal(shape.size, shape.size + shape.rank, out.sizes))
      refuse(argument, " must have shape ", shape_text(expected), ", got ", shape_text(out));
    check_device(a, out, argument);
    if (!elements_are_distinct(out))
      refuse(argument, " must not have elements that share memory (expanded?)");
    for (size_t k = 0; k < a.inputs.size(); ++k)
      if (overlap(out, a.inputs[k]) == Overlap::partial)
        refuse(argument, " must be exactly ", Argument("inputs", k),
               " or not share memory with it, got a partial overlap");
    for (size_t other = 0; other + 1 < o; ++other)
      check_disjoint(out, argument, &outputs[other], Argument("out", other));
    check_disjoint(out, argument, &a.table, "table");
    check_disjoint(out, argument, a.gate_table, "gate_table");
    check_disjoint(out, argument, a.mask, "mask");
    check_disjoint(out, argument, a.maps, "maps");
    check_disjoint(out, argument, a.step, "step");
    check_disjoint(out, argument, a.rng, "rng");
  }
}

// ---- the merged space -----------------------------------------------------------------------------

// The elements of [B, *sample] and how each tensor walks them. Complex tensors get a last dimension of their
// two parts.
class Space {
 public:
  using Strides = std::array<int64_t, kMaxRank + 1>;

  Space(const Shape& shape, bool complex) : rank_(shape.rank) {
    std::copy_n(shape.size, rank_, size_.begin());
    if (rank_ == 0) size_[rank_++] = 1;
    if (complex) size_[rank_++] = 2;
  }

  // Strides of a tensor whose dimensions skip, skip + 1, ... are the space's first, first + 1, ...; a size of
  // 1 is broadcast. `parts`: its elements are complex.
  Strides strides(const TensorView& view, int skip, int first, bool parts) const {
    Strides stride{};
    for (int d = skip; d < view.rank; ++d)
      stride[first + d - skip] = view.sizes[d] == 1 ? 0 : view.strides[d] * (parts ? 2 : 1);
    if (parts) stride[rank_ - 1] = 1;
    return stride;
  }

  Strides row_major(bool restart_per_sample) const {
    Strides stride{};
    int64_t next = 1;
    for (int d = rank_ - 1; d >= 0; --d) {
      stride[d] = d == 0 && restart_per_sample ? 0 : next;
      next *= size_[d];
    }
    return stride;
  }

  static Strides channel_number() {
    Strides stride{};
    stride[1] = 1;
    return stride;
  }

  // Fixes the order of the elements: as the first output has them in memory.
  void order_by(const Strides& first, bool samples_apart) {
    samples_apart_ = samples_apart;
    for (int d = samples_apart ? 1 : 0; d < rank_; ++d)
      if (size_[d] != 1) order_[ordered_++] = d;
    std::stable_sort(order_.begin(), order_.begin() + ordered_,
                     [&](int a, int b) { return first[a] != first[b] ? first[a] < first[b] : a > b; });
  }

  int64_t samples() const { return samples_apart_ ? size_[0] : 1; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ordered_; ++i) n *= size_[order_[i]];
    return n;
  }

  // Merges dimensions that every walk continues, and writes what is left: sizes innermost first, and each
  // walk's strides to stride[w]. Returns the number of dimensions, at least 1.
  int merge(std::span<const Strides> walks, int64_t* size, std::span<int64_t* const> stride) const {
    int dims = 0;
    for (int i = 0; i < ordered_; ++i) {
      const int d = order_[i];
      bool continues = dims > 0;
      for (size_t w = 0; continues && w < walks.size(); ++w)
        continues = walks[w][d] == stride[w][dims - 1] * size[dims - 1];
      if (continues) {
        size[dims - 1] *= size_[d];
        continue;
      }
      if (dims == kMaxDims)
        refuse("the tensors' layouts differ too much: they do not merge to ", kMaxDims, " dimensions");
      size[dims] = size_[d];
      for (size_t w = 0; w < walks.size(); ++w) stride[w][dims] = walks[w][d];
      ++dims;
    }
    if (dims == 0) size[dims++] = 1;
    return dims;
  }

  Walk walk(const Strides& strides) const {
    Walk walk;
    int64_t* const stride[] = {walk.stride};
    walk.dims = merge({&strides, 1}, walk.size, stride);
    if (samples_apart_) walk.sample_stride = strides[0];
    return walk;
  }

 private:
  int rank_;
  std::array<int64_t, kMaxRank + 1> size_{};
  std::array<int, kMaxRank + 1> order_{};  // dimensions of more than one element, innermost first
  int ordered_ = 0;
  bool samples_apart_ = false;
};

// The inputs and outputs of a launch, which share one merged space.
class Operands {
 public:
  void add(Operand& operand, const TensorView& view, const Space& space) {
    operand.data = view.data;
    operand.dtype = view.dtype;
    operands_[count_] = &operand;
    merged_[count_] = operand.stride;
    strides_[count_++] = space.strides(view, 0, 0, view.dtype == DType::c64);
  }

  void merge(const Space& space, Params& p) const {
    p.dims = space.merge({strides_.data(), count_}, p.size, {merged_.data(), count_});
    if (space.samples() == 1) return;
    for (size_t w = 0; w < count_; ++w) operands_[w]->sample_stride = strides_[w][0];
  }

  const Space::Strides& first() const { return strides_[0]; }

 private:
  static constexpr size_t kMost = kMaxInputs + kMaxRows;
  std::array<Operand*, kMost> operands_;
  std::array<int64_t*, kMost> merged_;
  std::array<Space::Strides, kMost> strides_;
  size_t count_ = 0;
};

int64_t bytes(const TensorView& view) {
  return view.numel() * size_of(view.dtype);
}

}  // namespace

Shape check(const Arguments& a) {
  const Shape shape = check_inputs(a.inputs);
  check_table(a, shape, a.table, "table", 3);
  check_step(a);
  check_rng(a, shape);
  check_gate(a, shape);
  check_maps(a, shape);
  check_store(a);
  check_noise(a);
  return shape;
}

Params prepare(const Arguments& a, const Shape& shape, std::span<const TensorView> outputs) {
  check_outputs(a, shape, outputs);

  // Scalars
  Params p;
  p.inputs = static_cast<int>(a.inputs.size());
  p.rows = rows_of(a);
  p.complex = a.inputs[0].dtype == DType::c64;
  p.table = table_of(a.table, a.step != nullptr);
  if (a.step) {
    p.step = static_cast<const int64_t*>(a.step->data);
    p.steps = a.table.size(0);
  }
  if (a.gate_table) p.gate_table = table_of(*a.gate_table, a.step != nullptr);
  if (a.rng) {
    p.rng = static_cast<const int64_t*>(a.rng->data);
    p.rng_sample_stride = a.rng->rank == 2 ? a.rng->stride(0) : 0;
  }

  // Operands, the first output first: its layout gives the order
  Space space(shape, p.complex);
  Operands operands;
  int64_t touched = 0;
  size_t o = 0;
  for (int i = 0; i < p.rows; ++i)
    if (a.store[i] >= 0) operands.add(p.output[i], outputs[o++], space);
  for (const TensorView& y : outputs) touched += bytes(y);
  for (int k = 0; k < p.inputs; ++k) {
    operands.add(p.input[k], a.inputs[k], space);
    p.compute_double |= a.inputs[k].dtype == DType::f64;
    touched += bytes(a.inputs[k]);
  }
  p.stream = touched > last_level_cache_bytes();
  const bool own_noise = a.rng && a.rng->rank == 2;
  space.order_by(operands.first(), p.table.sample_stride || p.gate_table.sample_stride || own_noise);
  p.samples = space.samples();
  p.numel = space.numel();
  operands.merge(space, p);

  // What else varies over the elements
  if (a.rng) p.index = space.walk(space.row_major(own_noise));
  if (a.mask) p.mask = {a.mask->data, a.mask->dtype, space.walk(space.strides(*a.mask, 0, 0, false))};
  if (!a.channels.empty()) {
    p.channel = space.walk(Space::channel_number());
    p.channel_begin = a.channels[0];
    p.channel_end = a.channels[1];
  }
  if (a.maps) {
    const int leading = a.step ? 2 : 1;
    p.map = {a.maps->data, a.maps->dtype, space.walk(space.strides(*a.maps, leading, 1, false))};
    p.map_step_stride = a.step ? a.maps->strides[0] : 0;
    p.map_stride = a.maps->strides[leading - 1];
    std::copy(a.map_index.begin(), a.map_index.end(), p.map_index);
  }
  return p;
}

#if !FASTDIFF_HAS_CUDA
void launch_cuda(const Params&, int, void*) {
  refuse("this build of fastdiff has no CUDA kernels; `fastdiff info` says why");
}
#endif

}  // namespace fastdiff::linear_step
