# SPDX-License-Identifier: Apache-2.0
"""A model that is told which branch and which sample each row of its batch is: what is not needed is not evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastdiff.guiders._guidance import Predictions, Source
    from fastdiff.planners.plan import Plan


class Rows:
    """A network for one batch of rows, each with a branch and a sample of its own.

    ``network(x, t, branch, sample) -> prediction`` gets x [N, *sample], the timestep, and for each of the N rows the
    number of its branch (its place in the guidance's `branches`: 0 is uncond, 1 is cond) and of its sample; so the
    conditioning is ``embeddings[branch, sample]``. A run asks for the rows that a step needs and no others: where
    guidance is off (`start`, `stop`, a scale of 1), or a sample has latched (`AdaptiveGuidance`), the unconditional
    rows are left out of the batch.

    Attributes:
        evaluations: rows evaluated so far, over all runs.
    """

    def __init__(self, network: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        self.network = network
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor, branch: Tensor, sample: Tensor) -> Tensor:
        self.evaluations += len(x)
        return self.network(x, t, branch, sample)


def needed_branches(plan: Plan) -> list[list[int]]:
    """[S] of the branches that each step reads."""
    columns = [plan.inputs.index(name) for name in plan.branches]
    table = plan.table if plan.gate is None else plan.table.abs() + plan.gate.abs()
    used = (table[:, :, columns] != 0).any(1)  # [S, branches]
    if plan.adaptive is not None:
        used |= plan.adaptive.active[:, None]  # the update reads them all
    if plan.learned_variance is not None:  # the conditional prediction has the variance in it
        used[:, min(1, len(columns) - 1)] = True
    return [torch.nonzero(row).flatten().tolist() for row in used]


def rows_source(plan: Plan, model: Rows) -> Source:
    """Predictions from a model of rows, evaluated where the plan reads them."""
    needed = needed_branches(plan)
    latched = plan.adaptive is not None and plan.adaptive.latched

    def source(i: int, x: Tensor, t: Tensor, history: Predictions) -> tuple[Tensor, ...]:
        everyone = torch.arange(len(x), device=x.device)
        samples = dict.fromkeys(needed[i], everyone)
        if latched and 0 in samples:
            # NOTE: the one place where a run waits for the device: the host decides what it evaluates
            samples[0] = torch.nonzero(history[-1] == 0).flatten()
        return evaluate(model, x, t, samples, len(plan.branches))

    return source


def evaluate(
    model: Rows, x: Tensor, t: Tensor, samples: dict[int, Tensor], branches: int
) -> tuple[Tensor, ...]:
    """The predictions [B, *sample] of each branch; what was not asked for is left unset.

    Args:
        samples: branch -> int64 numbers of the samples that need it.
    """
    if not samples:  # a step of CFGZeroStar that predicts 0
        return (x,) * branches
    rows = torch.cat(list(samples.values()))
    branch = torch.cat([torch.full_like(numbers, b) for b, numbers in samples.items()])
    parts = model(x.index_select(0, rows), t, branch, rows).split(
        [len(numbers) for numbers in samples.values()]
    )
    found: list[Tensor | None] = [None] * branches
    for (b, numbers), part in zip(samples.items(), parts, strict=True):
        whole = len(numbers) == len(x)
        found[b] = part if whole else part.new_empty((len(x), *part.shape[1:])).index_copy_(0, numbers, part)
    any_part = next(p for p in found if p is not None)
    return tuple(any_part if p is None else p for p in found)
