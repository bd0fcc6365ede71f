# SPDX-License-Identifier: Apache-2.0
"""DEIS: Zhang and Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv 2204.13902)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fastdiff.planners._bashforth import bashforth_plan
from fastdiff.planners._dpm import FEW_STEPS
from fastdiff.planners._execution import Threshold
from fastdiff.planners._exponential import Interval, finite_history
from fastdiff.planners._form import form
from fastdiff.planners._tables import levels_of
from fastdiff.planners.plan import Plan
from fastdiff.schedules import (
    DiscreteSchedule,
    Final,
    Grid,
    LevelSchedule,
    Placement,
    Schedule,
    SigmaSchedule,
    Spacing,
    Steps,
)
from fastdiff.schedules._grid import level_ratio

Space = Literal["log_rho", "rho", "t"]

# 12 points integrate ln(rho)^3 over an octave, the hardest of the integrands, to 1e-17.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def deis(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    space: Space = "log_rho",
    lower_order_final: bool = True,
    final_sigmas_type: Final = "sigma_min",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
) -> Plan:
    """DEIS-AB: the noise prediction as a polynomial in t (tAB), rho (rhoAB) or ln rho (log-rho AB), integrated exactly.

    With rho = sigma/alpha the diffusion equation is d(x/alpha) = eps drho, and so

        x_t = (alpha_t/alpha_s) x_s + sum_j w_j eps_j,    w_j = alpha_t int_(rho_s)^(rho_t) l_j drho

    over the Lagrange polynomials l_j, in the chosen variable, of this evaluation and the `order` - 1 before it:
    equations (14) and (15) with the integral over t written in rho. Order 1 is DDIM in every variable. Since
    ln rho = -lambda, log-rho AB is the exponential Adams method in lambda: `dpm_solver(order=2, solver_type="heun")`,
    and `dpm_solver(order=3, exact_third=True)`. The paper counts from 0: its tAB3 has order 4.

    t is what the model is told. Between two training timesteps ln rho is interpolated linearly in t; it is a closed
    function on a flow schedule, and t = rho on a schedule of sigmas without a base. The weights are exact to 1e-14.
    Trap: those of the official code are Riemann sums of 10^4 float32 terms, and are off by 1e-5 to 2e-4.

    The defaults give what diffusers' `DEISMultistepScheduler` gives, which has log-rho AB of order 1 to 3.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many model evaluations, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm.
        order: 1 to 4. The first evaluations have lower orders, for want of a history.
        space: the variable of the polynomials.
        lower_order_final: orders fall to 1 towards the end when there are fewer than 15 evaluations. A last step to
            sigma = 0 has order 1 in log_rho and t in any case: ln rho is infinite there.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r) or (low, high); eps is derived again from it.
        threshold: dynamic threshold of x0 instead.

    Raises:
        ValueError: another order, unknown names, bad ranges, alpha = 0 at the first level, space t on a list of levels.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1 to 4, got {order}")
    if space not in ("log_rho", "rho", "t"):
        raise ValueError(f"space: expected log_rho, rho or t, got {space!r}")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, endpoint=False), final_sigmas_type)
    if grid.alphas[0] == 0:
        raise ValueError("schedule: the noise form divides by alpha, which is 0 here; use dpm_solver_pp")
    count = len(grid.times)
    falls = lower_order_final and count < FEW_STEPS
    points = _points(space, schedule, grid)
    older = []
    for i in range(count):
        most = min(order, i + 1, count - i if falls else order)
        n = finite_history(points, i, most)
        older.append(_weights(space, schedule, grid, i, points[i - n + 1 : i + 1][::-1])[1:])
    return bashforth_plan(
        "deis",
        grid,
        schedule.solver_times(grid.times),
        older,
        prediction=prediction,
        form=form(False, clip_sample, threshold),
        order=order,
    )


def _points(space: Space, schedule: Schedule, grid: Grid) -> Sequence[float]:
    """The levels in the variable of the polynomials [S + 1]; for log_rho that is lambda, its negative."""
    ratios = [level_ratio(*level) for level in levels_of(grid)]
    if space == "log_rho":
        return grid.lambdas
    return ratios if space == "rho" else [_time(schedule, r) if r > 0 else -math.inf for r in ratios]


def _time(schedule: Schedule, ratio: float) -> float:
    return schedule.at(ratio)[0]


def _weights(
    space: Space, schedule: Schedule, grid: Grid, i: int, points: Sequence[float]
) -> Sequence[float]:
    """w_j of the step from level i to the next; points: newest first."""
    s, t = levels_of(grid)[i : i + 2]
    if len(points) == 1 or space == "log_rho":
        return Interval(s, t, data=False).interpolated(points) if len(points) > 1 else [0.0]
    ends = level_ratio(*s), level_ratio(*t)
    if space == "rho":
        integrals = _integrals(points, lambda rho: rho, ends)
    else:
        integrals = _integrals(points, lambda rho: _time(schedule, rho), _pieces(schedule, *ends))
    return [t[0] * integral for integral in integrals]


def _integrals(
    points: Sequence[float], variable: Callable[[float], float], edges: Sequence[float]
) -> list[float]:
    """int l_j(variable(rho)) drho from the first edge to the last, by Gauss-Legendre quadrature on each piece."""
    rho_s, rho_t = np.array(edges[:-1])[:, None], np.array(edges[1:])[:, None]
    half = (rho_t - rho_s) / 2
    at = np.vectorize(variable, otypes=[float])((rho_s + rho_t) / 2 + half * _POINTS)
    measure = half * _WEIGHTS
    return [float((measure * _lagrange(points, j, at)).sum()) for j in range(len(points))]


def _lagrange(points: Sequence[float], j: int, at: np.ndarray) -> np.ndarray:
    """l_j, which is 1 at points[j] and 0 at the others."""
    value = np.ones_like(at)
    for k, point in enumerate(points):
        if k != j:
            value = value * ((at - point) / (points[j] - point))
    return value


def _pieces(schedule: Schedule, rho_s: float, rho_t: float) -> list[float]:
    """Edges from rho_s to rho_t between which t is a smooth function of rho: octaves, cut at the training levels."""
    low, high = min(rho_s, rho_t), max(rho_s, rho_t)
    octaves = [2.0**n for n in range(math.frexp(low)[1] - 1, math.frexp(high)[1] + 1)]
    inner = sorted({r for r in (*octaves, *_training_ratios(schedule)) if low < r < high})
    return [rho_s, *(inner if rho_s < rho_t else reversed(inner)), rho_t]


def _training_ratios(schedule: Schedule) -> Sequence[float]:
    if isinstance(schedule, (SigmaSchedule, LevelSchedule)) and schedule.base is not None:
        return _training_ratios(schedule.base)
    if isinstance(schedule, DiscreteSchedule):
        return [level_ratio(*schedule.level(n)) for n in range(schedule.num_train_timesteps)]
    return ()
