# SPDX-License-Identifier: Apache-2.0
"""Gradients of linear_step with respect to its inputs, made of linear_step itself.

A row without bounds is linear in its inputs, so its gradient is one more program with the row's coefficients
as a column: up to four input gradients per launch. The bounds go between the rows as :func:`torch.clamp`, whose
gradient masks what was clamped. Values are bit for bit those of the fused op; the price of recording gradients is
one launch per row instead of one in all. Second derivatives work because the backward pass is the same function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.solver.linear_step import (
    CODE,
    DTYPE,
    MAX_INPUTS,
    MAX_ROWS,
    NOT_STORED,
    linear_step,
    store_codes,
)


def differentiable_linear_step(
    inputs: Sequence[Tensor],
    table: Tensor,
    *,
    step: Tensor | None,
    dtypes: Sequence[torch.dtype | None] | None,
    rng: Tensor | None,
    gate_table: Tensor | None,
    mask: Tensor | None,
    channels: tuple[int, int] | None,
    maps: Tensor | None,
    map_index: Sequence[int] | None,
) -> tuple[Tensor, ...]:
    """:func:`fastdiff.linear_step` with gradients to ``inputs``; same arguments, same bits."""
    for name, t in (("table", table), ("gate_table", gate_table), ("mask", mask), ("maps", maps)):
        if t is not None and t.requires_grad:
            raise NotImplementedError(
                f"fastdiff.linear_step: gradients with respect to {name} are not defined; detach it"
            )
    _check_program(inputs, table, step)
    store = store_codes(inputs, table, dtypes)
    count, rows = len(inputs), table.shape[-2]
    _check_store(store, rows, inputs[0].is_complex())
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    values = [x.expand(shape) for x in inputs]  # the sum over a shared input's samples is expand's gradient
    code = CODE[_accumulator(inputs)]
    for i in range(rows):
        row = _row_table(table, i, count, bounds=True)
        gate_row = None if gate_table is None else _row_table(gate_table, i, count, bounds=False)
        row_maps = (
            None if map_index is None else [*map_index[i * count : (i + 1) * count], *(-1 for _ in range(i))]
        )
        terms = values
        while len(terms) > MAX_INPUTS:  # the first terms alone; their sum leads the rest, exactly
            head, row, gate_row, head_maps, row_maps = _split(row, gate_row, row_maps)
            y = _row(*head, (step, None, mask, channels, maps, head_maps), code, *terms[:MAX_INPUTS])
            terms = [y, *terms[MAX_INPUTS:]]
        y = _row(row, gate_row, (step, rng, mask, channels, maps, row_maps), code, *terms)
        values.append(_clamp_between(y, *_bounds(table, step, i, shape)))
    return tuple(values[count + i].to(DTYPE[code]) for i, code in enumerate(store) if code != NOT_STORED)


def _check_program(inputs: Sequence[Tensor], table: Tensor, step: Tensor | None) -> None:
    """What the rows, each launched alone, could not notice. The op itself checks the rest, row by row."""
    count, first = len(inputs), inputs[0]
    same = all(x.dim() == first.dim() and x.shape[1:] == first.shape[1:] for x in inputs)
    rows = table.shape[-2] if table.dim() >= 2 else 0
    leading = table.dim() - 2 - (step is not None)
    checks = {
        f"inputs must be 1 to {MAX_INPUTS} tensors, got {count}": count <= MAX_INPUTS,
        "inputs must have one shape (or 1 in the first dimension), got "
        + ", ".join(str(list(x.shape)) for x in inputs): same,
        f"table must have 1 to {MAX_ROWS} rows and K + M + 3 columns, and a dimension of steps if step is given, "
        f"got shape {list(table.shape)} for K = {count}": 1 <= rows <= MAX_ROWS
        and table.shape[-1] == count + rows + 3
        and leading in (0, 1),
    }
    for refusal, holds in checks.items():
        if not holds:
            raise RuntimeError(f"fastdiff::linear_step: {refusal}")


def _check_store(store: Sequence[int], rows: int, is_complex: bool) -> None:
    if len(store) != rows:
        raise RuntimeError(f"fastdiff::linear_step: dtypes must have M = {rows} entries, got {len(store)}")
    stored = [DTYPE[code] for code in store if code != NOT_STORED]
    if not stored or any(dtype.is_complex != is_complex for dtype in stored):
        kind = "complex64" if is_complex else "real"
        raise RuntimeError(
            f"fastdiff::linear_step: dtypes must store at least one row, each {kind}, got {stored}"
        )


def _accumulator(inputs: Sequence[Tensor]) -> torch.dtype:
    if inputs[0].is_complex():
        return torch.complex64
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


def _row_table(table: Tensor, i: int, count: int, *, bounds: bool) -> Tensor:
    """Row i as a program of its own over the inputs and the earlier rows, without bounds."""
    rows = table.shape[-2]
    row = table[..., i : i + 1, :]
    own = torch.zeros_like(row[..., :1])
    parts = [row[..., : count + i], own, row[..., count + rows : count + rows + 1]]
    if bounds:
        parts += [torch.full_like(own, -math.inf), torch.full_like(own, math.inf)]
    return torch.cat(parts, dim=-1)


def _split(
    row: Tensor, gate_row: Tensor | None, row_maps: list[int] | None
) -> tuple[tuple[Tensor, Tensor | None], Tensor, Tensor | None, list[int] | None, list[int] | None]:
    """A row of more terms than a launch takes: the program of its first terms, and that of their sum plus the rest."""

    def halves(t: Tensor, lead: float) -> tuple[Tensor, Tensor]:
        none = torch.zeros_like(t[..., :1])
        tail = 2 if t is row else 0  # the bounds
        first = torch.cat([t[..., :MAX_INPUTS], none, none, t[..., t.shape[-1] - tail :]], dim=-1)
        return first, torch.cat([torch.full_like(none, lead), t[..., MAX_INPUTS:]], dim=-1)

    first, second = halves(row, 1.0)
    first_gate, second_gate = (None, None) if gate_row is None else halves(gate_row, 0.0)
    first_maps, second_maps = (
        (None, None) if row_maps is None else (row_maps[:MAX_INPUTS], [-1, *row_maps[MAX_INPUTS:]])
    )
    return (first, first_gate), second, second_gate, first_maps, second_maps


def _bounds(table: Tensor, step: Tensor | None, i: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """lo_i and hi_i of this step, [] or [B, 1, ...]."""
    rows = table if step is None else table.index_select(0, step.reshape(1)).squeeze(0)
    lo, hi = rows[..., i, -2], rows[..., i, -1]
    if not shape:  # 0-d tensors are one sample
        return lo.reshape(()), hi.reshape(())
    ones = (1,) * (len(shape) - 1)
    return (lo, hi) if lo.dim() == 0 else (lo.reshape(-1, *ones), hi.reshape(-1, *ones))


def _clamp_between(y: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    if y.is_complex():
        parts = torch.view_as_real(y)
        lo, hi = (b.unsqueeze(-1) if b.dim() else b for b in (lo, hi))
        return torch.view_as_complex(torch.clamp(parts, lo.to(parts.dtype), hi.to(parts.dtype)))
    return torch.clamp(y, lo.to(y.dtype), hi.to(y.dtype))


class _Row(torch.autograd.Function):
    """One row without bounds: y = sum_k C_k x_k + C_z z."""

    @staticmethod
    def forward(
        table: Tensor, gate_table: Tensor | None, rest: tuple[Any, ...], code: int, *values: Tensor
    ) -> Tensor:
        step, rng, mask, channels, maps, map_index = rest
        op = torch.ops.fastdiff.linear_step.default
        y: Tensor = op(list(values), table, step, [code], rng, gate_table, mask, channels, maps, map_index)[0]
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        table, gate_table, (step, _, mask, channels, maps, map_index), _, *values = inputs
        ctx.save_for_backward(table, gate_table, step, mask, maps)
        ctx.channels, ctx.map_index = channels, map_index
        ctx.dtypes = [v.dtype for v in values]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        table, gate_table, step, mask, maps = ctx.saved_tensors
        wanted = [k for k in range(len(ctx.dtypes)) if ctx.needs_input_grad[4 + k]]
        results: list[Tensor | None] = [None] * len(ctx.dtypes)
        for first in range(0, len(wanted), MAX_ROWS):
            group = wanted[first : first + MAX_ROWS]
            gradients = linear_step(
                [g],
                _column_table(table, group, bounds=True),
                step=step,
                dtypes=[ctx.dtypes[k] for k in group],
                gate_table=None if gate_table is None else _column_table(gate_table, group, bounds=False),
                mask=mask,
                channels=ctx.channels,
                maps=maps,
                map_index=None if ctx.map_index is None else [ctx.map_index[k] for k in group],
            )
            for k, gradient in zip(group, gradients, strict=True):
                results[k] = gradient
        return (None, None, None, None, *results)


_row: Callable[..., Tensor] = _Row.apply


def _column_table(table: Tensor, group: Sequence[int], *, bounds: bool) -> Tensor:
    """The program whose row r is C[group[r]] times the one input: K = 1, M = len(group)."""
    column = torch.cat([table[..., k : k + 1] for k in group], dim=-2)  # [..., M, 1]
    rest = torch.zeros_like(column).expand(*column.shape[:-1], len(group) + 1)
    parts = [column, rest]
    if bounds:
        parts += [torch.full_like(column, -math.inf), torch.full_like(column, math.inf)]
    return torch.cat(parts, dim=-1)
