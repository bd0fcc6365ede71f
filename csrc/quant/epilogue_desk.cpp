// SPDX-License-Identifier: Apache-2.0
#include "quant/epilogue.h"

#include <algorithm>

#include "core/layout.h"

namespace fastdiff::quant {
namespace {

int64_t samples_of(const TensorView& x) {
  return x.rank > 2 ? x.sizes[0] : 1;
}

// [size] or [B|1, size]
void check_for_samples(const char* op, const char* argument, const std::optional<TensorView>& t,
                       const TensorView& x, int64_t size) {
  if (!t) return;
  check_float(op, argument, *t, x);
  const int64_t b = samples_of(x);
  const bool fits = t->rank == 1 || (t->rank == 2 && (t->sizes[0] == 1 || t->sizes[0] == b));
  if (!fits || t->size(-1) != size)
    refuse(op, argument, " must have shape [", size, "] or [", b, " or 1, ", size, "], got ", shape_text(*t));
}

void check_matrix(const char* op, const char* argument, const TensorView& t, const TensorView& x,
                  int64_t rows, int64_t columns) {
  check_float(op, argument, t, x);
  if (t.rank != 2 || t.sizes[0] != rows || t.sizes[1] != columns)
    refuse(op, argument, " must have shape [", rows, ", ", columns, "], got ", shape_text(t));
}

void check_branch(const char* op, const EpilogueArguments& a, const TensorView& x, int64_t columns) {
  if (!a.down && !a.up && !a.gates) return;
  if (!a.down || !a.up) refuse(op, "down and up must be given together");
  const int64_t rank = a.down->rank == 2 ? a.down->sizes[0] : 0;
  check_matrix(op, "down", *a.down, x, rank, x.size(-1));
  check_matrix(op, "up", *a.up, x, columns, rank);
  if (rank > kMaxRankOfBranch) refuse(op, "down must have at most ", kMaxRankOfBranch, " rows, got ", rank);
  check_for_samples(op, "gates", a.gates, x, rank);
}

}  // namespace

void check_epilogue(const char* op, const EpilogueArguments& a, const TensorView& x, int64_t columns) {
  if (a.activation < 0 || a.activation >= kActivations)
    refuse(op, "activation must be 0 (none), 1 (gelu), 2 (gelu_tanh) or 3 (silu), got ", a.activation);
  if (a.gated && columns % 2 != 0)
    refuse(op, "a gated layer must have an even number of columns, got ", columns);
  const int64_t outputs = a.gated ? columns / 2 : columns;
  if (a.bias) {
    check_float(op, "bias", *a.bias, x);
    if (a.bias->rank != 1 || a.bias->sizes[0] != columns)
      refuse(op, "bias must have shape [", columns, "], got ", shape_text(*a.bias));
  }
  check_for_samples(op, "gate", a.gate, x, outputs);
  check_branch(op, a, x, columns);
  if (a.residual) {
    check_float(op, "residual", *a.residual, x);
    check_shape_like(op, "residual", *a.residual, x, outputs);
  }
}

Epilogue epilogue_of(const EpilogueArguments& a, const TensorView& x, int64_t columns) {
  Epilogue e;
  e.rows = count_rows(x);
  e.inner = x.size(-1);
  e.columns = columns;
  e.slots = slots_of(columns, a.gated);
  e.outputs = a.gated ? columns / 2 : columns;
  e.samples = samples_of(x);
  e.rows_of_sample = e.samples > 0 && e.rows > 0 ? e.rows / e.samples : 1;
  e.activation = static_cast<Activation>(a.activation);
  e.gated = a.gated;
  e.bias_in = vectors_of(a.bias);
  e.gate_in = vectors_of(a.gate);
  e.gates_in = vectors_of(a.gates);
  if (a.down && a.down->sizes[0] > 0) {
    e.rank = a.down->sizes[0];
    e.rank_padded = round_up(e.rank, kRankUnit);
    e.down_in = {a.down->data, a.down->dtype, a.down->strides[0], a.down->strides[1]};
    e.up_in = {a.up->data, a.up->dtype, a.up->strides[0], a.up->strides[1]};
  }
  if (a.residual) e.residual = rows_of(*a.residual);
  return e;
}

void set_result(const char* op, const EpilogueArguments& a, const TensorView& x, const TensorView& y,
                std::initializer_list<Input> others, Epilogue& e) {
  check_float(op, "out", y, x);
  check_shape_like(op, "out", y, x, e.outputs);
  if (!elements_are_distinct(y)) refuse(op, "out must not have elements that share memory (expanded?)");
  if (a.residual && overlap(y, *a.residual) == Overlap::partial)
    refuse(op, "out must be exactly residual or not share memory with residual");
  const auto check_apart = [&](const Input& input) {
    if (input.t && overlap(y, *input.t) != Overlap::none)
      refuse(op, "out must not share memory with ", input.name);
  };
  for (const Input& input : std::initializer_list<Input>{
           {"bias", a.bias}, {"gate", a.gate}, {"down", a.down}, {"up", a.up}, {"gates", a.gates}})
    check_apart(input);
  for (const Input& input : others) check_apart(input);
  if (overlap(y, x) != Overlap::none) refuse(op, "out must not share memory with x");
  e.y = rows_of(y);
}

Epilogue largest_epilogue(int64_t rows, int64_t inner, int64_t columns, int64_t rank, int64_t samples) {
  static const float any = 0.0f;
  Epilogue e;
  e.rows = rows;
  e.inner = inner;
  e.slots = std::max(slots_of(columns, true), slots_of(columns, false));
  e.outputs = columns;
  e.samples = samples;
  e.rank = rank;
  e.rank_padded = round_up(rank, kRankUnit);
  e.bias_in.data = e.gate_in.data = &any;
  e.gate_in.row = 1;
  return e;
}

void place(Epilogue& e, Cut& scratch) {
  if (e.bias_in.data != nullptr) e.bias = scratch.take<float>(e.slots);
  if (e.gate_in.data != nullptr) e.gate = scratch.take<float>(e.samples_of_gate() * e.outputs);
  if (e.rank == 0) return;
  e.down = scratch.take<float>(e.inner * e.rank_padded);
  e.up = scratch.take<float>(e.rank * e.slots);
  e.shrunk = scratch.take<float>(e.rows * e.rank_padded);
}

}  // namespace fastdiff::quant
