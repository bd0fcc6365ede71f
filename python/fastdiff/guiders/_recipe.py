# SPDX-License-Identifier: Apache-2.0
"""A guidance as a table: what each step's guided prediction is made of, and how it enters a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fastdiff.guidance.guidance_coefficients import PARAMETERS
from fastdiff.planners._reductions import Adaptive
from fastdiff.planners._tables import x0_and_eps

UNCOND, COND = "uncond", "cond"
DIFFERENCE = "cond-uncond"
UPDATE = "update"


@dataclass(frozen=True)
class Course:
    """What a guidance may ask about the run: one entry per step.

    Attributes:
        steps: S.
        times: [S] of the model's timesteps, or None if nobody knows.
        alphas, sigmas: [S + 1] levels, or None.
        prediction: what the model predicts.
    """

    steps: int
    times: tuple[float, ...] | None = None
    alphas: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    prediction: str = "epsilon"

    def conversion(self, i: int, wanted: str) -> tuple[float, float]:
        """(k, l): the wanted quantity, "epsilon" or "x0", is k prediction + l x at step i.

        Without levels the prediction is taken for what is wanted.
        """
        if wanted == self.prediction or self.alphas is None or self.sigmas is None:
            return 1.0, 0.0
        x0, eps = x0_and_eps(self.prediction, self.alphas[i], self.sigmas[i])
        along_x, along_prediction = x0 if wanted == "x0" else eps
        return along_prediction, along_x


def is_active(start: float, stop: float, steps: int, i: int) -> bool:
    """Whether int(start S) <= i < int(stop S), as diffusers' guiders count steps.

    Where there is only one step it is active: predictions that are guided by themselves are no part of a run.
    """
    return steps == 1 or int(start * steps) <= i < int(stop * steps)


def active(start: float, stop: float, steps: int) -> torch.Tensor:
    """[S] bool: the steps that `is_active`."""
    return torch.tensor([is_active(start, stop, steps, i) for i in range(steps)], dtype=torch.bool)


def where(on: torch.Tensor, value: float | torch.Tensor, other: float | torch.Tensor = 0.0) -> torch.Tensor:
    """float64 [S]: value in the steps that are on, other in the others."""
    return torch.where(
        on, torch.as_tensor(value, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64)
    )


def parameters(steps: int, **columns: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
    """float64 [S, 10], one number or S of them per named column; what is not named is 0."""
    table = torch.zeros(steps, len(PARAMETERS), dtype=torch.float64)
    for name, value in columns.items():
        table[:, PARAMETERS.index(name)] = torch.as_tensor(value, dtype=torch.float64)
    return table


@dataclass(frozen=True)
class Region:
    """Weights that hold where a mask is set: their difference to those outside.

    Attributes:
        mask: [B | 1, C | 1, ...] of the gate, 0 ... 1.
        weights: column -> float64 [S].
    """

    mask: torch.Tensor
    weights: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """guided = sum of weights[column] * column, and of what `adaptive` adds.

    Attributes:
        branches: the predictions, in the order in which a model returns them.
        weights: column (branch, state or row) -> float64 [S].
        rows: differences that are formed first: name -> column -> float64 [S].
        carry: state slot -> row that it takes its next value from; starts as zeros.
        adaptive: what the device adds.
        region: what a mask changes.
        channels: (c0, c1): guidance acts on these channels of dimension 1 only, the others take `cond`.
    """

    branches: tuple[str, ...]
    weights: Mapping[str, torch.Tensor]
    rows: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    carry: Mapping[str, str] = field(default_factory=dict)
    adaptive: Adaptive | None = None
    region: Region | None = None
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Program:
    """A program of `fastdiff.linear_step` whose guided prediction has been expanded.

    Attributes:
        table: float64 [S, M, K+M+3].
        gate: like table, of the region or the channels; zero bounds.
    """

    inputs: tuple[str, ...]
    rows: tuple[str, ...]
    table: torch.Tensor
    adaptive: Adaptive | None
    gate: torch.Tensor | None


def expand(
    recipe: Recipe,
    inputs: Sequence[str],
    rows: Sequence[str],
    table: torch.Tensor,
    guided: str = "prediction",
) -> Program:
    """The program in which the input `guided` is replaced by the recipe's branches.

    Args:
        inputs, rows: names of the K inputs and M rows.
        table: float64 [S, M, K+M+3].
    """
    steps, p = table.shape[0], inputs.index(guided)
    end = len(inputs) - (inputs[-1] == "noise")  # which stays last
    new_inputs = (*inputs[:p], *recipe.branches, *inputs[p + 1 : end], *recipe.carry, *inputs[end:])
    new_rows = (*recipe.rows, *rows)
    columns = [*new_inputs, *new_rows, "z", "lo", "hi"]
    result = torch.zeros(steps, len(new_rows), len(columns), dtype=torch.float64)
    result[..., -2], result[..., -1] = -torch.inf, torch.inf
    for row, terms in enumerate(recipe.rows.values()):
        for name, coefficient in terms.items():
            result[:, row, columns.index(name)] = coefficient
    own = result[:, len(recipe.rows) :]
    for n, name in enumerate([*inputs, *rows, "z", "lo", "hi"]):
        if n != p:
            own[..., columns.index(name)] = table[..., n]
    coefficient = table[..., p]  # [S, M] of the guided prediction

    def spread(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        more = torch.zeros_like(own)
        for name, weight in weights.items():
            more[..., columns.index(name)] += coefficient * weight[:, None]
        return more

    gate = None
    if recipe.region is not None:
        gate = torch.zeros_like(result)
        gate[:, len(recipe.rows) :] = spread(recipe.region.weights)
    if recipe.channels is not None:  # outside the gate cond, inside the difference to it
        alone = spread({COND: torch.ones(steps, dtype=torch.float64)})
        gate = torch.zeros_like(result)
        gate[:, len(recipe.rows) :] = spread(recipe.weights) - alone
        own += alone
    else:
        own += spread(recipe.weights)
    return Program(new_inputs, new_rows, result, recipe.adaptive, gate)
