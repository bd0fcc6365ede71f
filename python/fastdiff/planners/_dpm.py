# SPDX-License-Identifier: Apache-2.0
"""The DPM-Solver family: both forms, ODE and SDE, single- and multistep; what `dpm_solver` and `dpm_solver_pp` share.

A step goes from a base, the level s where x is known, to t. Besides m at the base, the network's x0 (data form) or eps
(noise form), it has m at one or two other points, from which it estimates the derivatives of m in lambda. Multistep:
the base is where the network was just evaluated, the others lie behind it. Singlestep: the base is where the block of
`order` evaluations began, the others lie between s and t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fastdiff.planners._exponential import Interval
from fastdiff.planners._form import Form
from fastdiff.planners._tables import (
    Level,
    Table,
    combine,
    conversion,
    levels_of,
    prediction_type,
    timestep_tensor,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Grid, Placement, Schedule, Steps

FEW_STEPS = 15  # below this lower_order_final takes effect in diffusers; the official code has 10

SolverType = Literal["midpoint", "heun"]
Method = Literal["multistep", "singlestep"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The options of `dpm_solver` and `dpm_solver_pp`, which differ in their form."""

    form: Form
    order: int
    solver_type: SolverType
    method: Method
    sde: bool
    exact_third: bool
    lower_order_final: bool
    euler_at_final: bool

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order: expected 1, 2 or 3, got {self.order}")
        if self.solver_type not in ("midpoint", "heun"):
            raise ValueError(f"solver_type: expected midpoint or heun, got {self.solver_type!r}")
        if self.method not in ("multistep", "singlestep"):
            raise ValueError(f"method: expected multistep or singlestep, got {self.method!r}")
        if self.sde and not self.form.data and self.order == 3 and not self.exact_third:
            raise ValueError("order: SDE-DPM-Solver was published up to 2; exact_third=True has 3")

    @property
    def _in_blocks(self) -> bool:
        """Whether a step may start from the x of an earlier evaluation."""
        return self.method == "singlestep" and self.order > 1

    def plan(
        self, solver: str, schedule: Schedule, steps: Steps, prediction: str, place: Placement, final: Final
    ) -> Plan:
        """The plan on a schedule.

        Rows: what makes m, the change of x, the new x. In blocks the last values of the part that stands for x move on
        from slot to slot, so that the base of a block is there without having been copied.
        """
        kind, m = prediction_type(prediction), self.form.m
        grid = schedule.grid(steps, place, final)
        if not self.form.data and grid.alphas[0] == 0:
            raise ValueError("schedule: the noise form divides by alpha, which is 0 here; use dpm_solver_pp")
        parts = (self.form.part, *(("base1", "base2")[: self.order - 1] if self._in_blocks else ()))
        ages = (m, *(f"m{n}" for n in range(1, self.order)))  # of this evaluation, of the one before, ..
        inputs = ("x", "prediction", *parts[1:], *ages[1:])
        change = (
            () if self._in_blocks and not self.form.data else ("dx",)
        )  # there x at the base is not kept whole
        rows = (*self.form.rows(kind), *change, "x'")
        table = Table(len(grid.times), inputs, rows)
        for i, order in enumerate(self._orders(grid)):
            self.form.set_m(table, i, kind, levels_of(grid)[i])
            self._set_step(table, i, kind, grid, ages[:order], parts)
        moved = dict(zip((*parts[1:], *ages[1:]), (*parts[:-1], *ages[:-1]), strict=True))
        return Plan(
            solver=solver,
            table=table.data,
            timesteps=timestep_tensor(schedule.solver_times(grid.times)),
            alphas=torch.tensor(grid.alphas, dtype=torch.float64),
            sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
            inputs=inputs,
            rows=rows,
            carry={"x": "x'"} | moved,
            prediction=kind,
            order=self.order,
            threshold=self.form.threshold,
        )

    def _set_step(
        self, table: Table, i: int, kind: str, grid: Grid, ages: Sequence[str], parts: Sequence[str]
    ) -> None:
        """The new x, from m of this evaluation and of the ones before; `parts` stand for their x likewise."""
        levels, lambdas = levels_of(grid), grid.lambdas
        visited, names = range(i, i - len(ages), -1), ages
        if self._in_blocks:  # the base first, which is the oldest of them
            visited, names = visited[::-1], ages[::-1]
        s = visited[0]
        step = Interval(levels[s], levels[i + 1], self.form.data, 1.0 if self.sde else 0.0)
        x = self.form.x(levels[s], parts[i - s], names[0])
        if grid.ascending and self.form.data and s == i and not self.form.clips:
            x = _split(kind, levels[i])
        r = [(lambdas[n] - lambdas[s]) / step.h for n in visited[1:]]
        terms = combine((step.x, x), (1, self._integral(step, names, r)), (step.noise, {"z": 1.0}))
        if "dx" in table.rows and 0.5 < step.x < 2:
            # Rounded to float32, a coefficient near 1 would move x by half a roundoff at every step.
            table.set(i, "dx", combine((1, terms), (-1, x)))
            terms = {parts[i - s] if self.form.data else "x": 1.0, "dx": 1.0}
        table.set(i, "x'", terms)

    # ---- order of each evaluation ------------------------------------------------------------------------

    def _orders(self, grid: Grid) -> list[int]:
        """The order that each evaluation is meant to have, or the most that its levels allow.

        A point at alpha = 0 has no finite lambda, sigma = 0 can only be reached by order 1, and so can the base itself.
        """
        count, lambdas = len(grid.times), grid.lambdas
        meant = self._blocks(count) if self._in_blocks else self._warming_up(count)
        orders = [min(n, i + (i == 0 or math.isfinite(lambdas[0]))) for i, n in enumerate(meant)]
        if grid.sigmas[-1] == 0 or (not self._in_blocks and lambdas[-1] == lambdas[-2]):
            orders[-1] = 1
        return orders

    def _warming_up(self, count: int) -> list[int]:
        """1, 2, .. for want of a history, then the order asked for; lower ones at the end."""
        few = self.lower_order_final and count < FEW_STEPS
        orders = [min(self.order, i + 1) for i in range(count)]
        if few:
            orders[-2:] = [min(n, most) for n, most in zip(orders[-2:], (2, 1)[-count:], strict=True)]
        elif self.euler_at_final:
            orders[-1] = 1
        return orders

    def _blocks(self, count: int) -> list[int]:
        """1, 2, .. order, each block starting from its own base; the last ones are shorter."""
        block = list(range(1, self.order + 1))
        whole, rest = divmod(count, self.order)
        if self.lower_order_final:
            return block * whole + block[:rest] if rest else block * (whole - 1) + [*block[:-1], 1]
        if rest:
            raise ValueError(
                f"steps: singlestep order {self.order} without lower_order_final needs a multiple of it, got {count}"
            )
        return block * whole

    # ---- weights -----------------------------------------------------------------------------------------

    def _integral(self, step: Interval, names: Sequence[str], r: Sequence[float]) -> dict[str, float]:
        """The integral over m: names are those of m at the base and at the other points, lambda_s + r h."""
        base, *others = names
        if len(others) == 0:
            return {base: step.first}
        if len(others) == 1:
            return second_order(step, base, others[0], r[0], self.solver_type)
        if self._in_blocks and self.solver_type == "midpoint":
            return second_order(step, base, others[1], r[1], "heun")
        slopes = [{name: 1 / ratio, base: -1 / ratio} for name, ratio in zip(others, r, strict=True)]
        # h m' and h^2/2 m'' of the parabola through all three
        near, far = r
        slope = combine((far / (far - near), slopes[0]), (-near / (far - near), slopes[1]))
        bend = combine((1 / (far - near), slopes[1]), (-1 / (far - near), slopes[0]))
        return combine((step.first, {base: 1.0}), (step.taylor(1), slope), (self._third(step), bend))

    def _third(self, step: Interval) -> float:
        """The weight of h^2/2 m'', which is 2 K_2/h^2; published multistep schemes have half of it.

        Trap: in diffusers' SDE forms K_2/h^2 has the sign of a 1/2 turned.
        """
        if self.exact_third:
            return 2 * step.taylor(2)
        published = step.taylor(2) - (step.t[0] if self.sde else 0.0)
        return 2 * published if self._in_blocks else published


def _split(kind: str, level: Level) -> dict[str, float]:
    """x as alpha x0 + sigma eps: towards noise sigma_t/sigma_s x and the term of x0 nearly cancel in data form."""
    alpha, sigma = level
    return combine((alpha, {"x0": 1.0}), (sigma, conversion(kind, level)[1]))


def second_order(
    step: Interval, base: str, other: str, r: float, solver_type: SolverType
) -> dict[str, float]:
    """The integral over m with the slope from m at lambda_s + r h; of order 3 if r = 2/3 and the form is heun's."""
    weight = step.first / 2 if solver_type == "midpoint" else step.taylor(1)
    return {base: step.first - weight / r, other: weight / r}
