# SPDX-License-Identifier: Apache-2.0
"""Exponential Adams methods with a corrector, in one launch per model evaluation: what UniPC and SA-Solver share.

A step from s to t predicts x_t from m at s and before (Adams-Bashforth). The model is evaluated there, and its m_t
corrects x_t: the same step once more, through m_t too (Adams-Moulton). Both start from the same x_s and, along an SDE,
add the same noise, so what the corrector changes is a combination of m alone:

    predicted   x_t  = a x_s +             sum_k p_k m_k + n z
    corrected   x_t' = a x_s + c_t m_t +   sum_k c_k m_k + n z  =  x_t + c_t m_t + sum_k (c_k - p_k) m_k

The next step starts from x_t' and is linear as well. So predictor and corrector together are one row of a linear
multistep method: x_s and z, which implementations keep from one evaluation to the next, are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from fastdiff.planners._exponential import Interval, TwoPoint, finite_history
from fastdiff.planners._form import Form
from fastdiff.planners._tables import Table, combine, levels_of, prediction_type, timestep_tensor
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Grid, Placement, Schedule, Steps

Terms = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Adams:
    """A predictor and a corrector.

    Attributes:
        predictor: how many points the predictor has, m at s and before.
        corrector: how many points the corrector has, m_t included; 0: no corrector.
        two_point: the form of both where they have two points.
        lower_order_final: fewer points towards the end, down to a predictor of order 1 for the last step.
        uncorrected: indices of the steps whose result is not corrected.
    """

    form: Form
    predictor: int
    corrector: int
    two_point: TwoPoint
    lower_order_final: bool
    uncorrected: Collection[int] = ()

    def plan(
        self,
        solver: str,
        schedule: Schedule,
        steps: Steps,
        *,
        prediction: str,
        place: Placement,
        final: Final,
        tau: Callable[[float], float] = lambda t: 0.0,
    ) -> Plan:
        """The plan on a schedule; tau is that of the SDE, at the time that the model is told."""
        kind, m = prediction_type(prediction), self.form.m
        grid = schedule.grid(steps, place, final)
        if not self.form.data and grid.alphas[0] == 0:
            raise ValueError("schedule: the noise form divides by alpha, which is 0 here; use the data form")
        times = schedule.solver_times(grid.times)
        corrects = self._corrects(len(times))
        depth = max(self.predictor, self.corrector - 1) if corrects else self.predictor - 1
        names = [m, *(f"m{n}" for n in range(1, depth + 1))]
        rows = (*self.form.rows(kind), "delta", "x'")
        table = Table(len(times), ("x", "prediction", *names[1:]), rows)
        levels = levels_of(grid)
        for i, (scale, terms) in enumerate(self._steps(grid, [tau(t) for t in times], names)):
            self.form.set_m(table, i, kind, levels[i])
            _set_x(table, i, m, scale, self.form.x(levels[i]), terms)
        return Plan(
            solver=solver,
            table=table.data,
            timesteps=timestep_tensor(times),
            alphas=torch.tensor(grid.alphas, dtype=torch.float64),
            sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
            inputs=("x", "prediction", *names[1:]),
            rows=rows,
            carry={"x": "x'"} | dict(zip(names[1:], names, strict=False)),
            prediction=kind,
            order=min(self.predictor + 1, self.corrector) if corrects else self.predictor,
            threshold=self.form.threshold,
        )

    def _corrects(self, count: int) -> bool:
        """Whether any step is corrected; the last one cannot be, no evaluation follows it."""
        return self.corrector > 0 and any(i not in self.uncorrected for i in range(count - 1))

    def _steps(
        self, grid: Grid, taus: Sequence[float], names: Sequence[str]
    ) -> Iterator[tuple[float, Terms]]:
        """x' of every step: the factor of x, and the other terms."""
        levels, lambdas, count = levels_of(grid), grid.lambdas, len(taus)
        change: Terms = {}  # by the corrector, of the x that this step starts from
        for i in range(count):
            step = Interval(levels[i], levels[i + 1], self.form.data, taus[i])
            predicted = self._predictor(step, lambdas, i)
            added = dict(zip(names, predicted, strict=False)) | {"z": step.noise}
            yield step.x, combine((step.x, change), (1, added))
            if i + 1 < count:
                corrected = self._corrector(step, lambdas, i + 1)
                instead = dict(zip(names[1:], predicted, strict=False)) if corrected else {}
                change = combine((1, dict(zip(names, corrected, strict=False))), (-1, instead))

    def _predictor(self, step: Interval, lambdas: Sequence[float], i: int) -> list[float]:
        """Weights of m at evaluations i, i - 1, ..."""
        left = len(lambdas) - 1 - i
        most = min(self.predictor, left) if self.lower_order_final else self.predictor
        points = finite_history(lambdas, i, min(most, i + 1))
        return step.adams(lambdas[i - points + 1 : i + 1][::-1], self.two_point)

    def _corrector(self, step: Interval, lambdas: Sequence[float], i: int) -> list[float]:
        """Weights of m at evaluations i, i - 1, ..., the step being the one that led to i; none: leave it."""
        if self.corrector == 0 or i - 1 in self.uncorrected or math.isinf(step.h):
            return []
        left = len(lambdas) - 1 - i
        most = min(self.corrector, left + 2) if self.lower_order_final else self.corrector
        points = 1 if most == 1 else 1 + finite_history(lambdas, i - 1, min(most - 1, i))
        return step.adams(lambdas[i - points + 1 : i + 1][::-1], self.two_point)


def _set_x(table: Table, i: int, m: str, scale: float, x: Terms, terms: Terms) -> None:
    """x' = scale x + terms, in two rows that keep the rounding of coefficients to float32 small.

    A factor near 1 would move x by half a roundoff at every step, always the same way: delta is x_t - x. Over a long
    step m and m1 have large weights of opposite sign, whose roundings do not cancel: delta is m - m1, and has one.
    """
    if 0.5 < scale < 2:
        table.set(i, "delta", combine((scale - 1, x), (1, terms)))
        table.set(i, "x'", {"x": 1.0, "delta": 1.0})
        return
    older = terms.get("m1", 0.0)
    if older:
        table.set(i, "delta", {m: 1.0, "m1": -1.0})
        terms = combine((1, terms), (older, {m: 1.0, "m1": -1.0, "delta": -1.0}))
    table.set(i, "x'", combine((scale, x), (1, terms)))
