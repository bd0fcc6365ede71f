# SPDX-License-Identifier: Apache-2.0
"""The DPM-Solver family: both forms, ODE and SDE, single- and multistep; what `dpm_solver` and `dpm_solver_pp` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fastdiff.planners._execution import Threshold
from fastdiff.planners._exponential import Interval, finite_history
from fastdiff.planners._tables import (
    Level,
    Table,
    clamp_range,
    combine,
    conversion,
    levels_of,
    prediction_type,
    set_x0,
    timestep_tensor,
    x0_rows,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Grid, Placement, Schedule, Spacing, Steps

FEW_STEPS = 15  # below this lower_order_final takes effect in diffusers; the official code has 10

SolverType = Literal["midpoint", "heun"]
Method = Literal["multistep", "singlestep"]


@dataclass(frozen=True)
class Family:
    """The options of a plan of this family.

    Attributes:
        data: data form (DPM-Solver++), else noise form.
        few_steps: lower_order_final takes effect below so many steps.
    """

    data: bool
    order: int
    solver_type: SolverType
    method: Method
    sde: bool
    exact_third: bool
    lower_order_final: bool
    euler_at_final: bool
    few_steps: int
    clip: tuple[float, float] | None = None
    threshold: Threshold | None = None
    m: str = field(init=False)  # the row that the history keeps

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", "x0" if self.data else "eps")
        if self.order not in (1, 2, 3):
            raise ValueError(f"order: expected 1, 2 or 3, got {self.order}")
        if self.solver_type not in ("midpoint", "heun"):
            raise ValueError(f"solver_type: expected midpoint or heun, got {self.solver_type!r}")
        if self.method not in ("multistep", "singlestep"):
            raise ValueError(f"method: expected multistep or singlestep, got {self.method!r}")
        if self.clip is not None and self.threshold is not None:
            raise ValueError("clip_sample, threshold: pass one or the other")
        if self.sde and not self.data and self.order == 3 and not self.exact_third:
            raise ValueError(
                "order: SDE-DPM-Solver in noise form was published up to 2; exact_third=True has 3"
            )

    def plan(
        self,
        solver: str,
        schedule: Schedule,
        steps: Steps,
        prediction: str,
        place: Placement,
        final: Final,
    ) -> Plan:
        """The plan on a schedule."""
        kind = prediction_type(prediction)
        grid = schedule.grid(steps, place, final)
        orders = self._multistep_orders(grid) if self.method == "multistep" else self._singlestep_orders(grid)
        single = self.method == "singlestep" and self.order > 1
        past = tuple(f"m{n}" for n in range(1, self.order))
        inputs = ("x", "prediction", *(("base",) if single else ()), *past)
        clips = self.clip is not None or self.threshold is not None
        made = x0_rows(kind)
        if not self.data:
            made = (*(made if clips else made[:-1]), "eps")
        rows = (*made, *(("base'",) if single else ()), "x'")
        table = Table(len(grid.times), inputs, rows)
        levels, lambdas = levels_of(grid), grid.lambdas
        for i, order in enumerate(orders):
            self._set_m(table, i, kind, levels[i])
            if single:
                start = i - order + 1
                table.set(i, "base'", {"x": 1.0} if order == 1 else {"base": 1.0})
                step = self._singlestep(levels[start], levels[i + 1], lambdas[start : i + 1])
                if order > 1:
                    step["base"] = step.pop("x")
            else:
                step = self._multistep(levels[i], levels[i + 1], lambdas[i - order + 1 : i + 1][::-1])
            table.set(
                i, "x'", step if self.data or clips else self._without_cancellation(table, step, levels[i])
            )
        carry = {"x": "x'"} | ({"base": "base'"} if single else {})
        return Plan(
            solver=solver,
            table=table.data,
            timesteps=timestep_tensor(schedule.solver_times(grid.times)),
            alphas=torch.tensor(grid.alphas, dtype=torch.float64),
            sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
            inputs=inputs,
            rows=rows,
            carry=carry | {name: past[n - 1] if n else self.m for n, name in enumerate(past)},
            prediction=kind,
            order=self.order,
            threshold=self.threshold,
        )

    def _set_m(self, table: Table, i: int, kind: str, level: Level) -> None:
        """The row of m. In noise form a clipped x0 gives a new eps = (x - alpha x0)/sigma."""
        alpha, sigma = level
        if "x0" in table.rows:
            set_x0(table, i, kind, level, self.clip)
        elif "d" in table.rows:
            table.set(i, "d", {"x": 1.0, "prediction": -sigma})
        if not self.data:
            eps = {"x": 1 / sigma, "x0": -alpha / sigma} if "x0" in table.rows else _eps(kind, level)
            table.set(i, "eps", eps)

    def _without_cancellation(self, table: Table, step: dict[str, float], level: Level) -> dict[str, float]:
        """alpha_t/alpha_s x - ... eps as alpha_t/alpha_s (x - sigma_s eps) + ... eps, whose terms are of its own size."""
        if "d" not in table.rows or "x" not in step:
            return step
        return combine(
            (1, {name: w for name, w in step.items() if name != "x"}),
            (step["x"], {"d": 1.0, "eps": level[1]}),
        )

    # ---- order of each evaluation ------------------------------------------------------------------------

    def _multistep_orders(self, grid: Grid) -> list[int]:
        """Warm-up, then the order asked for, then lower orders at the end."""
        count = len(grid.times)
        few = self.lower_order_final and count < self.few_steps
        ends_low = few or self.euler_at_final or grid.sigmas[-1] == 0
        orders = []
        for i in range(count):
            left = count - i
            most = 1 if left == 1 and ends_low else 2 if left == 2 and few else self.order
            orders.append(finite_history(grid.lambdas, i, min(self.order, most, i + 1)))
        return orders

    def _singlestep_orders(self, grid: Grid) -> list[int]:
        """Blocks 1, 2, .. order, each starting from its own base; the last ones are shorter."""
        count, n = len(grid.times), self.order
        blocks, rest = divmod(count, n)
        if self.lower_order_final:
            tail = list(range(1, rest + 1)) if rest else [*range(1, n), 1]
            orders = list(range(1, n + 1)) * (blocks if rest else blocks - 1) + tail
            orders = [1] * count if n == 1 else orders
        elif rest:
            raise ValueError(
                f"steps: singlestep order {n} without lower_order_final needs a multiple of {n}, got {count}"
            )
        else:
            orders = list(range(1, n + 1)) * blocks
        if grid.sigmas[-1] == 0:
            orders[-1] = 1
        return orders

    # ---- weights -----------------------------------------------------------------------------------------

    def _interval(self, s: Level, t: Level) -> Interval:
        return Interval(s, t, self.data, 1.0 if self.sde else 0.0)

    def _multistep(self, s: Level, t: Level, lambdas: Sequence[float]) -> dict[str, float]:
        """x_t from x and m at lambdas, newest first."""
        step = self._interval(s, t)
        terms = {"x": step.x, self.m: step.first, "z": step.noise}
        if len(lambdas) == 1:
            return terms
        h, gap = step.h, lambdas[0] - lambdas[1]
        slope = {self.m: h / gap, "m1": -h / gap}  # h m'
        if len(lambdas) == 2:
            return combine((1, terms), (self._second(step), slope))
        older = lambdas[1] - lambdas[2]
        before = {"m1": h / older, "m2": -h / older}
        change = combine((1, slope), (-1, before))
        first = combine((1, slope), (gap / (gap + older), change))
        bend = combine((h / (gap + older), change))  # h^2/2 m''
        return combine((1, terms), (step.taylor(1), first), (self._third(step), bend))

    def _singlestep(self, s: Level, t: Level, lambdas: Sequence[float]) -> dict[str, float]:
        """x_t from the base at s and m at lambdas, the base's own first."""
        step = self._interval(s, t)
        names = [f"m{n}" for n in range(len(lambdas) - 1, 0, -1)] + [self.m]  # oldest first
        terms = {"x": step.x, names[0]: step.first, "z": step.noise}
        if len(lambdas) == 1:
            return terms
        r = [(later - lambdas[0]) / step.h for later in lambdas[1:]]
        slopes = [{name: 1 / ratio, names[0]: -1 / ratio} for name, ratio in zip(names[1:], r, strict=True)]
        if len(lambdas) == 2:
            return combine((1, terms), (self._second(step), slopes[0]))
        if self.solver_type == "midpoint":
            return combine((1, terms), (step.taylor(1), slopes[1]))
        first = combine((r[1] / (r[1] - r[0]), slopes[0]), (-r[0] / (r[1] - r[0]), slopes[1]))
        bend = combine((1 / (r[1] - r[0]), slopes[1]), (-1 / (r[1] - r[0]), slopes[0]))  # h^2/2 m''
        return combine((1, terms), (step.taylor(1), first), (2 * self._half_third(step), bend))

    def _second(self, step: Interval) -> float:
        """The weight of h m' in a step of order 2."""
        return step.first / 2 if self.solver_type == "midpoint" else step.taylor(1)

    def _third(self, step: Interval) -> float:
        """The weight of h^2/2 m'': the published multistep scheme has half of the Taylor term."""
        return 2 * step.taylor(2) if self.exact_third else self._half_third(step)

    def _half_third(self, step: Interval) -> float:
        """K_2/h^2, or for the SDE as diffusers has it, with the sign of 1/2 turned, unless the exact one is asked for."""
        if self.sde and self.data and not self.exact_third:
            return step.taylor(2) - step.t[0]
        return step.taylor(2)


def _eps(kind: str, level: Level) -> dict[str, float]:
    """eps as terms in x and prediction; unlike x0, an epsilon prediction gives it at alpha = 0 too."""
    return {"prediction": 1.0} if kind == "epsilon" else conversion(kind, level)[1]


def family(
    *,
    data: bool,
    order: int,
    solver_type: SolverType,
    method: Method,
    sde: bool,
    exact_third: bool,
    lower_order_final: bool,
    euler_at_final: bool,
    few_steps: int,
    clip_sample: float | tuple[float, float] | None,
    threshold: Threshold | None,
) -> Family:
    """The options, checked."""
    return Family(
        data, order, solver_type, method, sde, exact_third, lower_order_final, euler_at_final, few_steps,
        clamp_range(clip_sample), threshold,
    )  # fmt: skip


def placement(spacing: Spacing, offset: int) -> Placement:
    return Placement(spacing, offset, endpoint=False)
