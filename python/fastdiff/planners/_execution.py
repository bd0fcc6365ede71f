# SPDX-License-Identifier: Apache-2.0
"""A plan made ready for one device and dtype: all that a step needs besides its tensors, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff.solver.linear_step import CODE, NOT_STORED

Seed = int | Sequence[int] | torch.Tensor

# The operator itself: without gradients to record, the wrapper around it has nothing to add to a step.
launch: Any = torch.ops.fastdiff.linear_step.default
launch_into: Any = torch.ops.fastdiff.linear_step.out


class Wiring:
    """Where each value goes after a step: which rows are stored, over what, and the state that follows.

    A state slot is fed either by a row or by another slot. So every stored row starts a chain, x0 -> m1 ->
    m2, whose slots have one dtype. The value at its end is forgotten in this step: the row may overwrite it.
    """

    def __init__(self, inputs: Sequence[str], rows: Sequence[str], carry: Mapping[str, str]) -> None:
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


class Execution:
    """Device tensors and the op's constant arguments.

    table [S, M, K+M+3]: fp32, or fp64 for fp64 states. steps: S int64 scalars, views of one tensor. times: S
    scalars for the model, int64 or fp32 (fp64 for fp64 states). store: per row the code of its dtype.
    """

    def __init__(
        self,
        table: torch.Tensor,
        timesteps: torch.Tensor,
        wiring: Wiring,
        device: torch.device,
        dtypes: Dtypes,
    ) -> None:
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
            self.steps = torch.arange(table.shape[0], device=device).unbind()
            self.times = timesteps.to(device, real if timesteps.is_floating_point() else torch.int64).unbind()


def new_history(on: Execution, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Unset history slots: the first steps have zero coefficients there, which are not read."""
    # NOTE: no method, because torch.compile cannot call one of a constant
    return tuple([torch.empty_like(x, dtype=dtype) for dtype in on.history_dtypes])


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
