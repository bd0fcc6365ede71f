# SPDX-License-Identifier: Apache-2.0
"""Coefficients that depend on the predictions: found on the device, in two launches before the step's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastdiff.guidance.guidance_coefficients import guidance_coefficients
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
        response: float64 [S, M], the coefficient of the guided prediction in each row.
        differences: how many leading rows a latched sample can do without.
    """

    method: str
    parameters: Tensor
    active: Tensor
    targets: tuple[str, ...]
    pair: tuple[str, str]
    extras: tuple[str, ...] = ()
    mix: tuple[tuple[float, float, float], ...] = ()
    latched: bool = False
    given: bool = False
    response: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    differences: int = 0

    def with_row(self) -> Adaptive:
        """For a program with one more row at its end, which takes nothing of the guided prediction."""
        none = torch.zeros_like(self.response[:, :1])
        return replace(self, response=torch.cat((self.response, none), 1))

    def without_row(self, row: int) -> Adaptive:
        """For a program in which this row comes from elsewhere."""
        response = self.response.clone()
        response[:, row] = 0
        return replace(self, response=response)

    def of_rows(self, rows: int) -> Adaptive:
        """For the program of the first rows alone."""
        return replace(self, response=self.response[:, :rows])


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
        self.response = adaptive.response.to(device, dtype)

    def stats(self, inputs: Sequence[Tensor]) -> Tensor:
        """The statistics float64 [B, sums] of the program's inputs."""
        uncond, cond = [inputs[k] for k in self.pair]
        return guidance_stats(uncond, cond, [inputs[k] for k in self.extras], mix=self.mix)

    def coefficients(
        self, stats: Tensor, numel: int, step: int | Tensor, latch: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The table of a step and the latch after it.

        Returns:
            [B, M, K+M+3], or [S, B, M, K+M+3] of equal entries if `step` is a tensor, as `fastdiff.linear_step`
            takes it beside a step.
        """
        tables, at = (self.parameters, self.table, self.response), None
        if isinstance(step, Tensor):
            at = step
        else:
            tables = (self.parameters[step], self.table[step], self.response[step])
        coefficients, *rest = guidance_coefficients(
            stats, *tables, method=self.adaptive.method, numel=numel, targets=self.targets,
            differences=self.adaptive.differences, step=at, latch=latch,
        )  # fmt: skip
        if at is not None:
            coefficients = coefficients.expand(len(self.table), -1, -1, -1)
        return coefficients, rest[0] if rest else None


def numel_of(sample: Tensor) -> int:
    """Elements of one sample of [B, *sample], at least 1."""
    count = 1
    for size in sample.shape[1:]:
        count *= size
    return max(count, 1)
