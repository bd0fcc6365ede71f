# SPDX-License-Identifier: Apache-2.0
"""A plan made ready for one device and dtype: all that a step needs besides its tensors, computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff import _C
from fastdiff._native import mark_written
from fastdiff.planners._reductions import Adaptive, Reductions
from fastdiff.solver.linear_step import CODE, NOT_STORED

Seed = int | Sequence[int] | torch.Tensor

# The operator itself: without gradients to record, the wrapper around it has nothing to add to a step.
launch: Any = torch.ops.fastdiff.linear_step.default
_operator_into: Any = torch.ops.fastdiff.linear_step.out
_kernel_into: Callable[..., bool] = _C.linear_step_into


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of x0 (Saharia et al. 2022, section 2.3): see `fastdiff.dynamic_threshold`.

    A step of such a plan is x0 by one launch, its threshold, and the other rows by a second launch.

    Attributes:
        ratio: the quantile of |x0| that is kept.
        max_value, min_value: bounds of the threshold. diffusers' `sample_max_value` is 1 by default, which makes
            this plain clipping to [-1, 1].
    """

    ratio: float = 0.995
    max_value: float = 1.0
    min_value: float = 1.0


class Wiring:
    """Where each value goes after a step: which rows are stored, over what, and the state that follows.

    A state slot is fed either by a row or by another slot. So every stored row starts a chain, x0 -> m1 ->
    m2, whose slots have one dtype. The value at its end is forgotten in this step: the row may overwrite it.
    """

    def __init__(self, inputs: Sequence[str], rows: Sequence[str], carry: Mapping[str, str]) -> None:
        self.inputs, self.rows = tuple(inputs), tuple(rows)
        feeds = {source: slot for slot, source in carry.items()}
        chains = {row: _chain(row, feeds) for row in rows if row in feeds}
        columns = [*inputs, *chains]
        first = {slot: chain[0] for chain in chains.values() for slot in chain}
        history = [slot for slot in inputs if slot in carry and slot != "x"]
        self.stored = {rows.index(row): chain[0] for row, chain in chains.items()}  # row -> first slot
        self.overwritten = [columns.index(chain[-1]) for chain in chains.values()]
        self.history = [first.get(slot, slot) for slot in history]  # first slot of each one's chain
        self.next_x = columns.index(carry["x"])
        self.next_history = [columns.index(carry[slot]) for slot in history]


def _chain(row: str, feeds: Mapping[str, str]) -> list[str]:
    chain = [feeds[row]]
    while chain[-1] in feeds:
        chain.append(feeds[chain[-1]])
    return chain


@dataclass(frozen=True)
class Dtypes:
    """What is stored in which dtype: the state x, the copy of it that the model sees, and the history."""

    x: torch.dtype
    history: torch.dtype
    seen: torch.dtype

    def of(self, slot: str) -> torch.dtype:
        """The dtype of the chain that starts at this slot."""
        return {"x": self.x, "seen": self.seen}.get(slot, self.history)


@dataclass(frozen=True)
class Program:
    """The tables of a plan in float64, as the launches of one step take them.

    Attributes:
        table: [S, M, K+M+3]; with a threshold there is one more input, the thresholded x0.
        head: [S, R, K+R+3], the R rows that make x0, if x0 goes through a threshold.
        gate: [S, M, K+M+1], the noise coefficients where the model gives the noise's deviation; or the changes that a
            mask or a range of channels makes.
        deviation: [S, 2], (a, b): that deviation is exp(a + b v).
    """

    table: torch.Tensor
    head: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    deviation: torch.Tensor | None = None


def program_of(
    table: torch.Tensor, inputs: int, x0: int | None, noise_column: int, deviation: torch.Tensor | None
) -> Program:
    """Split the table [S, M, K+M+3] of a plan with K inputs for a threshold and a learned deviation.

    Args:
        x0: the row that goes through a threshold, or None.
        noise_column: of the noise input, or of the generated noise.
        deviation: [S, 2] or None.
    """
    head = gate = None
    if x0 is not None:  # the rows before it run twice, it copies one more input in the second launch
        head = table[:, : x0 + 1, [*range(inputs + x0 + 1), *range(table.shape[-1] - 3, table.shape[-1])]]
        table = torch.cat((table[..., :inputs], torch.zeros_like(table[..., :1]), table[..., inputs:]), -1)
        table[:, x0, :-2] = 0
        table[:, x0, inputs] = 1
        table[:, x0, -2], table[:, x0, -1] = -math.inf, math.inf
        noise_column += noise_column >= inputs
    if deviation is not None:
        table = table.clone()
        gate = torch.zeros_like(table[..., :-2])
        gate[..., noise_column] = table[..., noise_column]
        table[..., noise_column] = 0
    return Program(table, head, gate, deviation)


class Execution:
    """Device tensors and the op's constant arguments.

    table [S, M, K+M+3]: fp32, or fp64 for fp64 states. steps: S int64 scalars, views of one tensor. times: S
    scalars for the model, int64 or fp32 (fp64 for fp64 states). store: per row the code of its dtype.
    """

    def __init__(
        self,
        program: Program,
        timesteps: torch.Tensor,
        wiring: Wiring,
        device: torch.device,
        dtypes: Dtypes,
        adaptive: Adaptive | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        table = program.table
        for dtype in (dtypes.x, dtypes.history, dtypes.seen):
            if dtype not in CODE:
                raise TypeError(f"plan: cannot store {dtype}, expected one of {', '.join(map(str, CODE))}")
        real = torch.float64 if dtypes.x == torch.float64 else torch.float32
        self.wiring = wiring
        self.dtypes: list[torch.dtype | None] = [None] * table.shape[1]
        for row, slot in wiring.stored.items():
            self.dtypes[row] = dtypes.of(slot)
        self.store = [NOT_STORED if d is None else CODE[d] for d in self.dtypes]
        self.history_dtypes = [dtypes.of(slot) for slot in wiring.history]
        # NOTE: no inference tensors, whatever mode the first call is in: autograd may save them later
        with torch.inference_mode(False):
            self.table = table.to(device, real)
            self.head = None if program.head is None else program.head.to(device, real)
            self.gate = None if program.gate is None else program.gate.to(device, real)
            self.mask = None if mask is None else mask.to(device)
            # NOTE: e^a (e^b)^v. Rounding e^b costs |v| roundoffs of the result, rounding b and b v would cost 2 |b v|
            self.deviation = None if program.deviation is None else program.deviation.exp().to(device, real)
            self.steps = torch.arange(table.shape[0], device=device).unbind()
            self.times = timesteps.to(device, real if timesteps.is_floating_point() else torch.int64).unbind()
            self.reductions = self.head_reductions = None
            if adaptive is not None:
                self.reductions = Reductions(adaptive, wiring.inputs, wiring.rows, table, device, real)
                if program.head is not None:
                    rows = wiring.rows[: program.head.shape[1]]
                    self.head_reductions = Reductions(
                        adaptive, wiring.inputs[:-1], rows, program.head, device, real
                    )
        self.latched = adaptive is not None and adaptive.latched
        # A momentum is added up over the run: it has the arithmetic's precision, and a start.
        self.zeroed = [slot == "momentum" for slot in wiring.history]
        self.history_dtypes = [
            real if zero else d for zero, d in zip(self.zeroed, self.history_dtypes, strict=True)
        ]
        for row, slot in wiring.stored.items():
            if slot == "momentum":
                self.dtypes[row] = real
                self.store[row] = CODE[real]


def launch_into(
    on: Execution,
    inputs: list[torch.Tensor],
    table: torch.Tensor,
    step: torch.Tensor,
    rng: torch.Tensor | None,
    mask: torch.Tensor | None,
    channels: tuple[int, int] | None,
    results: list[torch.Tensor],
) -> None:
    """One launch over existing tensors.

    Four of the six microseconds of a small step would go into the dispatcher. So the kernel is called beside it,
    unless someone watches or replaces operators: then the operator is called, as it is where the kernel declines
    (subclasses, large CPU tensors, which are worth more than one thread) and for a range of channels.
    """
    if (
        channels is not None
        or _is_watched()
        or not _kernel_into(inputs, table, step, on.store, rng, on.gate, mask, results)
    ):
        _operator_into(
            inputs, table, step, on.store, rng, on.gate, mask, channels, None, None, results=results
        )
    mark_written(results)


def _is_watched() -> bool:
    """Whether a compiler, tracer, profiler or mode must see the operator."""
    return (
        torch.compiler.is_compiling()
        or bool(torch._C._len_torch_dispatch_stack())
        or bool(torch._C._len_torch_function_stack())
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def new_history(on: Execution, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Unset history slots: the first steps have zero coefficients there, which are not read."""
    # NOTE: no method, because torch.compile cannot call one of a constant
    slots = [
        torch.zeros_like(x, dtype=dtype) if zero else torch.empty_like(x, dtype=dtype)
        for zero, dtype in zip(on.zeroed, on.history_dtypes, strict=True)
    ]
    if on.latched:
        slots.append(x.new_zeros(x.shape[:1], dtype=torch.uint8))
    return tuple(slots)


def thresholded(
    on: Execution,
    threshold: Threshold,
    inputs: Sequence[torch.Tensor],
    head: torch.Tensor | None,
    step: torch.Tensor,
) -> torch.Tensor:
    """x0 [B, *sample] after its threshold, in the arithmetic's dtype (fp32, or fp64). head: the table that makes x0.

    Raises:
        NotImplementedError: an input requires grad; a quantile has no gradient here.
    """
    from fastdiff.solver.dynamic_threshold import dynamic_threshold

    if torch.is_grad_enabled() and any([v.requires_grad for v in inputs]):  # noqa: C419
        raise NotImplementedError("plan: a threshold has no gradient; run the plan under torch.no_grad()")
    assert head is not None
    store = [NOT_STORED] * (head.shape[-2] - 1) + [CODE[head.dtype]]
    # NOTE: not by its wrapper, which torch.compile cannot ask whether a constant requires grad
    (x0,) = launch(list(inputs), head, step, store, None, None, None, None, None, None)
    return dynamic_threshold(x0, threshold.ratio, threshold.max_value, min_value=threshold.min_value, out=x0)


def learned_deviation(
    on: Execution, predictions: Sequence[torch.Tensor], step: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The predictions [B, C, *] of a model with 2C channels, and exp(a + b v) [B, C, *] of the conditional one."""
    assert on.deviation is not None
    halves = [p.chunk(2, 1) for p in predictions]
    # NOTE: deviation[step] would wait for the device
    a, b = on.deviation.index_select(0, step.reshape(1)).unbind(1)
    return [p for p, _ in halves], a * b.pow(halves[min(1, len(halves) - 1)][1])


def noise_key(seed: Seed | None, device: torch.device) -> torch.Tensor:
    """(seed, 0) as the op takes it: int64 [2], or [B, 2] for one seed per sample; drawn if seed is None.

    Raises:
        TypeError: a tensor that is not int64 of shape [2] or [B, 2].
    """
    if isinstance(seed, torch.Tensor):
        if seed.dtype != torch.int64 or seed.ndim not in (1, 2) or seed.shape[-1] != 2:
            raise TypeError(
                "seed: expected int64 of shape [2] or [B, 2] as (seed, offset), "
                f"got {seed.dtype} {list(seed.shape)}"
            )
        return seed
    seeds = (
        torch.empty((), dtype=torch.int64).random_()
        if seed is None
        else torch.tensor(seed, dtype=torch.int64)
    )
    key = torch.stack((seeds, torch.zeros_like(seeds)), -1)
    if device.type == "cuda":  # from pinned memory, so that nobody waits for the copy
        return key.pin_memory().to(device, non_blocking=True)
    return key.to(device)
