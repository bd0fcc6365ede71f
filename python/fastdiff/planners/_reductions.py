# SPDX-License-Identifier: Apache-2.0
"""Coefficients that depend on the predictions: found on the device, in two launches before the step's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.guidance.guidance_coefficients import METHODS, launch
from fastdiff.guidance.guidance_stats import guidance_stats


@dataclass(frozen=True)
class Adaptive:
    """What a plan leaves to the device: weights of some columns that depend on the predictions.

    Attributes:
        method: of `fastdiff.guidance_coefficients`.
        parameters: float64 [S, 10].
        active: [S] bool, the steps in which the device decides.
        targets: names of the columns that get the weights.
        pair: names of the inputs u and c.
        extras: names of the inputs that are extras of `fastdiff.guidance_stats`; mix: of these.
        latched: whether samples latch; a latch, uint8 [B], is then the last entry of the history.
        given: the statistics come with the predictions, as their last entry, and need no pass.
        row: name of the update's row; a latched sample needs neither it nor those before.
    """

    method: str
    parameters: Tensor
    active: Tensor
    row: str
    targets: tuple[str, ...]
    pair: tuple[str, str]
    extras: tuple[str, ...] = ()
    mix: tuple[tuple[float, float, float], ...] = ()
    latched: bool = False
    given: bool = False


class Reductions:
    """An adaptive part made ready for one program, device and dtype."""

    def __init__(
        self,
        adaptive: Adaptive,
        inputs: Sequence[str],
        rows: Sequence[str],
        table: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        columns = [*inputs, *rows]
        self.adaptive = adaptive
        self.is_active: list[bool] = adaptive.active.tolist()
        self.targets = [columns.index(name) for name in adaptive.targets]
        self.pair = [columns.index(name) for name in adaptive.pair]
        self.extras = [columns.index(name) for name in adaptive.extras]
        self.mix = adaptive.mix or None
        self.parameters = adaptive.parameters.to(device)
        self.table = table.to(device, dtype)
        self.method = METHODS.index(adaptive.method)
        self.row = list(rows).index(adaptive.row)


# NOTE: no methods, because torch.compile cannot call one of a constant


def stats_of(on: Reductions, inputs: Sequence[Tensor]) -> Tensor:
    """The statistics float64 [B, sums] of the program's inputs."""
    uncond, cond = [inputs[k] for k in on.pair]
    return guidance_stats(uncond, cond, [inputs[k] for k in on.extras], mix=on.mix)


def coefficients_of(
    on: Reductions, stats: Tensor, numel: int, step: int | Tensor, latch: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The table of a step and the latch after it.

    Returns:
        [B, M, K+M+3], or [S, B, M, K+M+3] of equal entries if `step` is a tensor, as `fastdiff.linear_step` takes it
        beside a step.
    """
    tables, at = (on.parameters, on.table), None
    if isinstance(step, Tensor):
        at = step
    else:
        tables = (on.parameters[step], on.table[step])
    coefficients, *rest = launch(stats, *tables, at, latch, on.method, numel, on.row, on.targets)
    if at is not None:
        coefficients = coefficients.expand(len(on.table), -1, -1, -1)
    return coefficients, rest[0] if rest else None


def numel_of(sample: Tensor) -> int:
    """Elements of one sample of [B, *sample], at least 1."""
    count = 1
    for size in sample.shape[1:]:
        count *= size
    return max(count, 1)
