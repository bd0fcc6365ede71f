# SPDX-License-Identifier: Apache-2.0
"""LinearAG: unconditional predictions from a linear model of the past ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.guiders._guidance import Guidance, Predictions, Source, classifier_free
from fastdiff.guiders._recipe import Course, Recipe
from fastdiff.guiders._rows import Rows, evaluate
from fastdiff.planners.plan import Plan
from fastdiff.solver.linear_step import MAX_INPUTS, linear_step


@dataclass(frozen=True)
class Regression:
    """u_i = sum_{j <= i} cond[j] c_j + sum_{j < i} uncond[j] u_j.

    Attributes:
        cond: i + 1 coefficients.
        uncond: i coefficients.
        residual: root mean square error of the fit, relative to that of u.
    """

    cond: tuple[float, ...]
    uncond: tuple[float, ...]
    residual: float = math.nan

    @property
    def used(self) -> int:
        """How many past and present predictions it reads."""
        return sum(b != 0 for b in (*self.cond, *self.uncond))


class LinearAG(Guidance):
    """u + s (c - u) with u evaluated in some steps, and in the others estimated from all predictions so far.

    Castillo et al. 2025, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models" (arXiv
    2312.12487): the estimate is one scalar per past prediction, fitted by least squares over stored trajectories (see
    `fit_linear_ag`). An estimated u is in the history of later steps like an evaluated one.

    In a run, the estimate is one launch over the history, and the model (a `Rows`) is asked for the conditional rows
    only. Called on predictions it keeps the history itself: ``g(cond, None, step=i, steps=S)`` where u is estimated.

    Args:
        scale: s.
        regressions: one per step; None: u is evaluated. The first cannot be estimated.

    Raises:
        ValueError: coefficients of a wrong number, or more than 40 that are not 0 in a step.
    """

    def __init__(self, scale: float, regressions: Sequence[Regression | None]) -> None:
        super().__init__()
        for i, regression in enumerate(regressions):
            if regression is None:
                continue
            sizes = (len(regression.cond), len(regression.uncond))
            if sizes != (i + 1, i) or regression.used > MAX_INPUTS:
                raise ValueError(
                    f"LinearAG: step {i} needs {i + 1} coefficients for cond and {i} for uncond, at most "
                    f"{MAX_INPUTS} of them not 0; got {sizes}, {regression.used} not 0"
                )
        self.scale, self.regressions = scale, tuple(regressions)
        self._history = _Estimator(self.regressions)

    def recipe(self, course: Course) -> Recipe:
        if course.steps != len(self.regressions):
            raise ValueError(
                f"LinearAG: regressions are for {len(self.regressions)} steps, got a run of {course.steps}"
            )
        on = torch.ones(course.steps, dtype=torch.bool)
        return classifier_free(on, torch.full((course.steps,), self.scale, dtype=torch.float64))

    def reset(self) -> None:
        super().reset()
        self._history = _Estimator(self.regressions)

    def __call__(  # type: ignore[override]
        self,
        cond: Tensor,
        uncond: Tensor | None,
        *,
        step: int,
        steps: int | None = None,
        t: float | None = None,
    ) -> Tensor:
        if step == 0:
            self.reset()
        known = self._history.add(step, cond, uncond)
        state, self._history = self._history, _Estimator(self.regressions)  # NOTE: step 0 resets the base too
        guided = super().__call__(cond, known, step=step, steps=len(self.regressions))
        self._history = state
        return guided

    def source(self, plan: Plan, model: Any) -> Source:
        if not isinstance(model, Rows):
            raise TypeError(
                "LinearAG: the model must be a fastdiff.guidance.Rows, which can leave out the unconditional rows"
            )
        estimator = _Estimator(self.regressions)

        def source(i: int, x: Tensor, t: Tensor, _: Predictions) -> tuple[Tensor, Tensor]:
            everyone = torch.arange(len(x), device=x.device)
            estimated = self.regressions[i] is not None
            samples = {1: everyone} if estimated else {0: everyone, 1: everyone}
            uncond, cond = evaluate(model, x, t, samples, 2)
            return estimator.add(i, cond, None if estimated else uncond), cond

        return source


class _Estimator:
    """The predictions so far."""

    def __init__(self, regressions: tuple[Regression | None, ...]) -> None:
        self.regressions = regressions
        self.cond: list[Tensor] = []
        self.uncond: list[Tensor] = []
        self._tables: dict[int, Tensor] = {}

    def add(self, i: int, cond: Tensor, uncond: Tensor | None) -> Tensor:
        """u of step i, evaluated or estimated."""
        if i != len(self.cond):
            raise ValueError(f"LinearAG: expected step {len(self.cond)}, got {i}")
        # NOTE: copies, because a compiled network may write its next output into the same memory
        self.cond.append(cond.clone())
        regression = self.regressions[i]
        if uncond is None and regression is None:
            raise ValueError(f"LinearAG: uncond is evaluated in step {i}, got none")
        u = uncond.clone() if uncond is not None else self._estimate(regression)
        self.uncond.append(u)
        return u

    def _estimate(self, regression: Regression | None) -> Tensor:
        assert regression is not None
        terms = [(b, x) for b, x in zip((*regression.cond, *regression.uncond), (*self.cond, *self.uncond), strict=True)
                 if b != 0]  # fmt: skip
        if not terms:
            return torch.zeros_like(self.cond[-1])
        wide = terms[0][1].dtype == torch.float64
        table = torch.tensor([[*(b for b, _ in terms), 0.0, 0.0, -math.inf, math.inf]], dtype=torch.float64)
        device = terms[0][1].device
        # Kept in float32: rounding an estimate would go into all later ones.
        (u,) = linear_step(
            [x for _, x in terms], table.to(device, torch.float64 if wide else torch.float32),
            dtypes=[torch.float64 if wide else torch.float32],
        )  # fmt: skip
        return u


def fit_linear_ag(
    conds: Sequence[Tensor],
    unconds: Sequence[Tensor],
    evaluated: int | Sequence[bool] = 1,
    *,
    ridge: float = 0.0,
) -> list[Regression | None]:
    """Fit `LinearAG` to stored trajectories: least squares, every element an observation.

    Args:
        conds, unconds: S tensors [B, *sample] each, c_i and u_i of runs with both evaluated.
        evaluated: the number of first steps in which u stays evaluated, or a bool per step.
        ridge: added to the normal matrix's diagonal, relative to its mean: keeps the coefficients of nearly equal
            predictions small, at a little loss of fit.

    Returns:
        One regression per step, None where u stays evaluated. float64 arithmetic; where predictions are linearly
        dependent the coefficients of least norm.

    Raises:
        ValueError: different numbers of steps, or the first step not evaluated.
    """
    if len(conds) != len(unconds):
        raise ValueError(
            f"fit_linear_ag: expected as many unconds as conds, got {len(unconds)} and {len(conds)}"
        )
    stays = [i < evaluated for i in range(len(conds))] if isinstance(evaluated, int) else list(evaluated)
    if len(stays) != len(conds) or not stays[0]:
        raise ValueError(
            f"fit_linear_ag: evaluated must be True first and have {len(conds)} entries, got {stays}"
        )
    c, u = (torch.stack([x.double().flatten() for x in xs]) for xs in (conds, unconds))
    both = torch.cat((c, u))  # [2S, observations]
    gram = both @ both.T
    steps = len(conds)
    result: list[Regression | None] = []
    for i in range(steps):
        if stays[i]:
            result.append(None)
            continue
        known = [*range(i + 1), *range(steps, steps + i)]
        normal, right = gram[known][:, known], gram[known, steps + i]
        normal = normal + ridge * normal.diagonal().mean() * torch.eye(len(known), dtype=torch.float64)
        beta = torch.linalg.lstsq(normal[None], right[None, :, None], driver="gelsd").solution[0, :, 0]
        error = (u[i] - beta @ both[known]).norm() / u[i].norm()
        result.append(Regression(tuple(beta[: i + 1].tolist()), tuple(beta[i + 1 :].tolist()), float(error)))
    return result
