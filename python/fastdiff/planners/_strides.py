# SPDX-License-Identifier: Apache-2.0
"""The steps of DDIM, and of its inversion, which goes them back: x_t = alpha_t x0 + c eps + n z.

With x = alpha_s (x0 + cut) + sigma_s eps, cut being what a clip took away from x0, either of x0 and eps can be
replaced. In a small step the weight of x is then nearly 1 and the others nearly 0, and so are their roundings, which
are the same in every element and add up over the steps. Towards less noise it is eps that must go, towards more noise
x0: the other way round the terms would be large and cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.planners._posterior import Posterior
from fastdiff.planners._tables import (
    Level,
    Table,
    combine,
    conversion,
    levels_of,
    set_next_x,
    set_x0,
    x0_rows,
)
from fastdiff.schedules import DiscreteSchedule, Final, Grid, Placement, Schedule, Spacing, Steps

Clamp = tuple[float, float] | None


@dataclass(frozen=True)
class Strides:
    """Step i of DDIM evaluates the model at `grid.times[i]`, where x is at level `at[i]`, and goes to level `to[i]`."""

    grid: Grid
    at: list[Level]
    to: list[Level]


def strides(
    schedule: Schedule,
    steps: Steps,
    *,
    timestep_spacing: Spacing,
    steps_offset: int,
    set_alpha_to_one: bool,
    fixed_stride: bool,
) -> Strides:
    """The steps, noisiest first; see `ddim` for the arguments.

    Raises:
        ValueError: levels that increase.
    """
    final: Final = "zero" if set_alpha_to_one else "sigma_min"
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset), final)
    if grid.ascending:
        raise ValueError("schedule: expected levels that decrease, which ddim_inversion goes backwards")
    *at, end = levels_of(grid)
    to = [*at[1:], end]
    if fixed_stride and isinstance(schedule, DiscreteSchedule) and isinstance(steps, int):
        stride = schedule.num_train_timesteps // steps
        to = [schedule.level(t - stride) if t >= stride else end for t in grid.times]
    return Strides(grid, at, to)


def denoising_rows(kind: str, *, cuts: bool) -> tuple[str, ...]:
    """The rows that `set_denoising` fills.

    Args:
        cuts: x0 is clipped, but eps is that of the x0 before.
    """
    return (*x0_rows(kind), *(("cut",) if cuts else ()), "dx", "x'")


def set_denoising(table: Table, i: int, kind: str, s: Level, t: Level, clamp: Clamp, eta: float) -> None:
    """Step i, from s to the cleaner level t, without eps."""
    c, n = _weights(s, t, eta)
    set_x0(table, i, kind, s, clamp)
    x, back = c / s[1], c * s[0] / s[1]
    set_next_x(table, i, {"x": x, "x0": t[0] - back, "z": n} | _cut(table, i, kind, s, -back))


def noising_rows(kind: str, *, cuts: bool) -> tuple[str, ...]:
    """The rows that `set_noising` fills."""
    return (*((*x0_rows(kind), "cut") if cuts else ()), *(() if kind == "epsilon" else ("eps",)), "dx", "x'")


def set_noising(table: Table, i: int, kind: str, s: Level, t: Level, clamp: Clamp) -> None:
    """Step i, from s to the noisier level t, without x0."""
    x, eps = t[0] / s[0], "prediction"
    if "cut" in table.rows:
        set_x0(table, i, kind, s, clamp)
    if "eps" in table.rows:
        eps = "eps"
        table.set(i, eps, conversion(kind, s)[1])
    set_next_x(table, i, {"x": x, eps: t[1] - x * s[1]} | _cut(table, i, kind, s, -t[0]))


def _cut(table: Table, i: int, kind: str, s: Level, weight: float) -> dict[str, float]:
    """The row of what the clip takes away, if there is one, and its term."""
    if "cut" not in table.rows:
        return {}
    raw = {"d": 1 / s[0]} if "d" in table.rows else conversion(kind, s)[0]
    table.set(i, "cut", combine((1, raw), (-1, {"x0": 1.0})))
    return {"cut": weight}


def _weights(s: Level, t: Level, eta: float) -> tuple[float, float]:
    """The weights c of eps and n of the noise: Song et al. 2021, equations (12) and (16), any alpha and sigma.

    Raises:
        ValueError: more noise than there is at level t.
    """
    if eta == 0:
        return t[1], 0.0
    q = Posterior(s, t)
    square = (1 - eta) * (1 + eta) + (eta * q.r) ** 2
    if square < 0 < t[1]:
        raise ValueError(f"eta: expected 0 to {1 / math.sqrt((1 - q.r) * (1 + q.r)):.6g} here, got {eta}")
    return t[1] * math.sqrt(max(square, 0.0)), eta * q.small
