# SPDX-License-Identifier: Apache-2.0
"""linear_step: a triangular program of linear combinations, the one primitive under every solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native, _philox

if TYPE_CHECKING:
    from fastdiff._case import Case

# c10::ScalarType codes, stable across torch versions; schemas carry ints because `str` and dtype lists do not travel.
CODE: Final[dict[torch.dtype, int]] = {
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex64: 9,
    torch.bfloat16: 15,
}
DTYPE: Final = {code: dtype for dtype, code in CODE.items()}
NOT_STORED: Final = -1
MAX_INPUTS: Final = 40
MAX_ROWS: Final = 8

_ARGUMENTS: Final = (
    "Tensor[] inputs, Tensor table, Tensor? step, int[] store, Tensor? rng=None, Tensor? gate_table=None, "
    "Tensor? mask=None, int[]? channels=None, Tensor? maps=None, int[]? map_index=None"
)


def _fake(
    inputs: Sequence[Tensor], table: Tensor, step: Tensor | None, store: Sequence[int], *rest: object
) -> list[Tensor]:
    first = inputs[0]
    _check_devices(inputs, table, step, *rest)
    full = next((x for x in inputs if x.dim() and x.shape[0] != 1), first)
    dtypes = [DTYPE[code] for code in store if code != NOT_STORED]
    if full is first or first.shape[0] != 1:
        return [torch.empty_like(first, dtype=dtype) for dtype in dtypes]
    return [first.new_empty((full.shape[0], *first.shape[1:]), dtype=dtype) for dtype in dtypes]


def _fake_out(
    inputs: Sequence[Tensor],
    table: Tensor,
    step: Tensor | None,
    _: object,
    *rest: object,
    results: Sequence[Tensor],
) -> None:
    _check_devices(inputs, table, step, *rest, *results)


def _check_devices(inputs: Sequence[Tensor], *others: object) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for t in (*inputs, *others):
        if isinstance(t, Tensor) and t.device != inputs[0].device:
            raise RuntimeError(
                f"fastdiff::linear_step: every tensor must be on {inputs[0].device} like inputs[0], "
                f"got one on {t.device}"
            )


_native.define(f"linear_step({_ARGUMENTS}) -> Tensor[]", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own and breaks the graph at strided tensors.
_native.define(f"linear_step.out({_ARGUMENTS}, *, Tensor(a!)[] results) -> ()", _fake_out)


def linear_step(
    inputs: Sequence[Tensor],
    table: Tensor,
    *,
    step: Tensor | None = None,
    dtypes: Sequence[torch.dtype | None] | None = None,
    out: Sequence[Tensor] | None = None,
    rng: Tensor | None = None,
    gate_table: Tensor | None = None,
    mask: Tensor | None = None,
    channels: tuple[int, int] | None = None,
    maps: Tensor | None = None,
    map_index: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    r"""Run a triangular program of linear combinations over tensors in one pass over memory.

    For rows i = 0 .. M-1, with inputs x_k (k < K), the step s and the sample b:

    .. math::
        y_i = \mathrm{clamp}\Bigl(\sum_k C_{s,b,i,k} x_k + \sum_{j<i} C_{s,b,i,K+j} y_j + C_{s,b,i,K+M} z,\;
              C_{s,b,i,K+M+1},\; C_{s,b,i,K+M+2}\Bigr)

    Every solver update, guidance blend and re-noising step that has no reduction is such a program: a planner
    computes C once in float64, this op applies it. A term whose coefficient is exactly 0 is not read, so an unset
    history slot may hold anything, NaN included. Sums are formed in float32 (float64 if an input is float64) with
    fused multiply-adds in the order of the columns, and each stored row is rounded once, at the store; later rows
    use the unrounded y_j. The result has the same bits on CPU (any instruction set, any number of threads) and CUDA.

    Args:
        inputs: K tensors ``[B, *sample]``, 1 <= K <= 40, of float32, float16, bfloat16 or float64 in any mix, or all
            complex64. The first dimension may be 1: the tensor is shared by all samples. Any strides that merge to
            at most 6 dimensions: any one dense layout does.
        table: the coefficients C, float32 or float64, ``[M, K + M + 3]`` with 1 <= M <= 8, or ``[B, M, K + M + 3]``
            per sample. With ``step``: ``[S, M, K + M + 3]`` or ``[S, B, M, K + M + 3]``. The last three columns are
            the noise coefficient and the bounds (-inf, inf: none). For complex inputs the bounds act on each part.
        step: int64 tensor of one element on the inputs' device: which step of the table. Being data, it neither
            recompiles a graph nor is baked into a CUDA graph.
        dtypes: for each row the dtype to store it in, or None: not stored. Default: only the last row, in the dtype
            of ``inputs[0]``.
        out: tensors for the stored rows, in row order, any strides; each may be exactly one of the inputs (in place).
        rng: int64 ``[2]`` = (seed, offset): z is standard normal, Philox4x32-10 at (seed, offset + s) and the
            element's row-major index in the batch. ``[B, 2]``: one stream per sample and the index within the
            sample, so a sample's noise does not depend on its batch. complex64: total variance 1.
        gate_table: ``[..., M, K + M + 1]``, added to the coefficients (not the bounds) times the gate's weight.
        mask: the gate's weight per element; bool, uint8 or float, of the inputs' rank, each dimension full or 1.
        channels: (c0, c1): the gate is 0 outside channels c0 <= c < c1 of dimension 1.
        maps: per-element factors, ``[P, *sample]``, or ``[S, P, *sample]`` with ``step``.
        map_index: M * K ints, row by row: the map that multiplies C[i, k], or -1.

    Returns:
        The stored rows, each ``[B, *sample]`` in the layout of ``inputs[0]`` (or ``out``).

    Raises:
        RuntimeError: a wrong count, rank, shape, dtype, device, overlap or step index. Nothing is written then.
            (A wrong step or a missing ``rng`` on CUDA stops the kernel and surfaces as a CUDA error.)
        NotImplementedError: gradients are asked for with ``out=``, or with respect to ``table``, ``gate_table``,
            ``mask`` or ``maps``.

    Differentiable with respect to ``inputs`` (reverse mode); see :mod:`fastdiff.solver.linear_step_grad`.

    Source: the update rules of DDIM (Song et al. 2021, eq. 12), DPM-Solver++ (Lu et al. 2022, Alg. 2) and most
    others are instances; the tables are in :mod:`fastdiff.planners`.
    """
    tensors = _tensor_list("inputs", inputs)
    constants = [t for t in (table, gate_table, mask, maps) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *constants)):
        from fastdiff.solver.linear_step_grad import differentiable_linear_step

        if out is not None:
            raise NotImplementedError(
                "fastdiff.linear_step: out= does not record gradients; detach the inputs or omit out"
            )
        return differentiable_linear_step(
            tensors, table, step=step, dtypes=dtypes, rng=rng, gate_table=gate_table, mask=mask, channels=channels,
            maps=maps, map_index=map_index,
        )  # fmt: skip
    rest = (rng, gate_table, mask, channels, maps, map_index)
    if out is None:
        store = store_codes(tensors, table, dtypes)
        return tuple(torch.ops.fastdiff.linear_step.default(tensors, table, step, store, *rest))
    results = _tensor_list("out", out)
    store = store_codes(tensors, table, dtypes if dtypes is not None else _dtypes_of_out(table, results))
    torch.ops.fastdiff.linear_step.out(tensors, table, step, store, *rest, results=results)
    _native.mark_written(results)
    return tuple(results)


def _tensor_list(argument: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor):  # it would be split along its first dimension
        raise RuntimeError(f"fastdiff::linear_step: {argument} must be a list of tensors, got one tensor")
    return list(tensors)


def store_codes(
    inputs: Sequence[Tensor], table: Tensor, dtypes: Sequence[torch.dtype | None] | None
) -> list[int]:
    """The op's ``store`` argument: per row the ScalarType code of its storage dtype, -1 where it is not stored."""
    if dtypes is None:
        rows = table.shape[-2] if table.dim() >= 2 else 1
        dtypes = (None,) * (rows - 1) + (inputs[0].dtype if inputs else torch.float32,)
    try:
        return [NOT_STORED if dtype is None else CODE[dtype] for dtype in dtypes]
    except KeyError as error:
        raise RuntimeError(
            f"fastdiff::linear_step: dtypes must be among {', '.join(map(str, CODE))}, got {error.args[0]}"
        ) from None


def _dtypes_of_out(table: Tensor, out: Sequence[Tensor]) -> list[torch.dtype | None]:
    """Without dtypes=, one output is the last row and M outputs are all rows; anything else is ambiguous."""
    rows = table.shape[-2] if table.dim() >= 2 else 1
    if len(out) == rows:
        return [t.dtype for t in out]
    if len(out) == 1:
        return [None] * (rows - 1) + [out[0].dtype]
    raise RuntimeError(
        f"fastdiff::linear_step: dtypes is needed to say which {len(out)} of the {rows} rows out holds, got None"
    )


def reference(
    inputs: Sequence[Tensor],
    table: Tensor,
    *,
    step: Tensor | None = None,
    dtypes: Sequence[torch.dtype | None] | None = None,
    rng: Tensor | None = None,
    gate_table: Tensor | None = None,
    mask: Tensor | None = None,
    channels: tuple[int, int] | None = None,
    maps: Tensor | None = None,
    map_index: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """:func:`linear_step` in plain PyTorch and float64, row by row as the formula reads; rounded at the end."""
    count, rows = len(inputs), table.shape[-2]
    wide = torch.complex128 if inputs[0].is_complex() else torch.float64
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    index = int(step) if step is not None else None
    z = None if rng is None else _philox.noise(shape, rng, step=index or 0, complex_parts=wide.is_complex)
    picture = shape if len(shape) else (1,)

    def at_step(t: Tensor) -> Tensor:
        return t if index is None else t[index]

    def column(t: Tensor, row: int, col: int) -> Tensor:
        """One coefficient, [] or [B], shaped to broadcast over the sample."""
        c = at_step(t).to(torch.float64)[..., row, col]
        return c.reshape(c.shape + (1,) * (len(picture) - 1)) if c.dim() else c

    weight = _gate_weight(picture, mask, channels, inputs[0].device) if gate_table is not None else None
    values: list[Tensor] = [x.to(wide) for x in inputs]
    results: list[Tensor] = []
    for i in range(rows):
        y = torch.zeros(shape, dtype=wide, device=inputs[0].device)
        for col in [*range(count + i), count + rows]:
            c = column(table, i, col)
            if gate_table is not None and weight is not None:
                c = c + weight * column(gate_table, i, col)
            if maps is not None and map_index is not None and col < count and map_index[i * count + col] >= 0:
                c = c * at_step(maps)[map_index[i * count + col]].to(torch.float64)
            if not bool((c != 0).any()):
                continue
            x = values[col] if col < count + i else _required(z)
            y = y + torch.where(c != 0, c * x, torch.zeros((), dtype=wide, device=x.device))
        values.append(_clamp(y, column(table, i, count + rows + 1), column(table, i, count + rows + 2)))
    for i, code in enumerate(store_codes(inputs, table, dtypes)):
        if code != NOT_STORED:
            results.append(values[count + i].reshape(shape).to(DTYPE[code]))
    return tuple(results)


def _required(z: Tensor | None) -> Tensor:
    if z is None:
        raise RuntimeError(
            "fastdiff::linear_step: rng is needed: the table's noise column is not zero, got none"
        )
    return z


def _gate_weight(
    shape: Sequence[int], mask: Tensor | None, channels: tuple[int, int] | None, device: torch.device
) -> Tensor:
    weight = torch.ones((), dtype=torch.float64, device=device) if mask is None else mask.to(torch.float64)
    if channels is not None:
        inside = torch.zeros(shape[1], dtype=torch.float64, device=device)
        inside[channels[0] : channels[1]] = 1
        weight = weight * inside.reshape((1, -1) + (1,) * (len(shape) - 2))
    return weight


def _clamp(y: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    if y.is_complex():
        return torch.complex(_clamp(y.real, lo, hi), _clamp(y.imag, lo, hi))
    return torch.minimum(torch.maximum(y, lo), hi)


def dlpack_arguments(inputs: Sequence[Tensor], table: Tensor, **options: Any) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``linear_step`` for a call of the public one, without ``out``."""
    dropped = ("dtypes", "out")
    rest = {name: value for name, value in options.items() if value is not None and name not in dropped}
    return {"inputs": list(inputs), "table": table, **rest}


def dlpack_outputs(
    stored: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, **options: Any
) -> list[Tensor | None]:
    """``out`` of the torch-free ``linear_step``: one entry per row, None where it is not stored."""
    left = iter(stored)
    return [
        None if code == NOT_STORED else next(left)
        for code in store_codes(inputs, table, options.get("dtypes"))
    ]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff.solver.linear_step_cases import build_cases

    return build_cases(seed)
