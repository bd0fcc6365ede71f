// SPDX-License-Identifier: Apache-2.0
// The front desk of linear_step: checks once for all callers and backends, then lays out the launch.
#include <algorithm>
#include <utility>

#include "core/cache.h"
#include "core/layout.h"
#include "core/space.h"
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
  Space space("linear_step", shape, p.complex);
  Operands<kMaxInputs + kMaxRows> operands;
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
  p.dims = operands.merge(space, p.size);

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
