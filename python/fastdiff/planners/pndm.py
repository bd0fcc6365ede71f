# SPDX-License-Identifier: Apache-2.0
"""PNDM: Liu, Ren, Lin and Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds"
(arXiv 2202.09778)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from fastdiff.planners._bashforth import ADAMS
from fastdiff.planners._strides import Strides, strides
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
from fastdiff.schedules import DiscreteSchedule, Schedule, Spacing, Steps
from fastdiff.schedules._grid import level_ratio


def pndm(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    skip_prk_steps: bool = False,
    mean_of_eps: bool = False,
    set_alpha_to_one: bool = False,
    timestep_spacing: Spacing = "leading",
    steps_offset: int = 0,
    fixed_stride: bool = True,
) -> Plan:
    """F-PNDM, algorithm 2: DDIM from s to t along a mean e' of predictions, which is the transfer of equation (11).

        PLMS  e' = (55 e_t - 59 e_(t+d) + 37 e_(t+2d) - 9 e_(t+3d))/24                       equation (12)
        PRK   e' = (e1 + 2 e2 + 2 e3 + e4)/6, the classical Runge-Kutta method's four        equation (13)

    PRK makes the first three steps, of four evaluations each: at s, twice half-way, at t; each with x as DDIM from s
    along the prediction before makes it. Or, with `skip_prk_steps`, the first step is made twice: once along e1, then
    again along (e1 + e2)/2, e2 being evaluated at its end; then come PLMS means of 2 and 3 predictions. So there are
    S + 9 evaluations, or S + 1 (1 if S = 1): the second timestep is evaluated twice.

    The coefficients are those of equal steps in rho = sigma/alpha: there the order is 4, or 3 without PRK, otherwise 2
    (section 3.4). The history holds x and the predictions as they come, none is copied.

    The defaults give what diffusers' `PNDMScheduler` gives.

    Args:
        schedule: of `fastdiff.schedules`; PRK evaluates the model between its steps.
        steps: S, 4 or more with PRK, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        skip_prk_steps: start without PRK.
        mean_of_eps: e' is a mean of noise predictions. Trap: diffusers' is one of v under v_prediction, made at
            different levels and taken for a v at s. For epsilon it is the same.
        set_alpha_to_one: end at sigma = 0; False ends at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        fixed_stride: step from t to t - T//S, and half-way to t - T//S//2, as diffusers does in a discrete schedule.
            Trap: when T//S is odd or the spacing is not "leading", that is not where the model is evaluated next.
            False steps there, and has the middle half-way in rho. An explicit list of timesteps and other schedules
            always do.

    Raises:
        ValueError: fewer than 4 steps with PRK, unknown names, eps prediction at alpha = 0, PRK on a list of levels.
    """
    kind = prediction_type(prediction)
    path = strides(
        schedule,
        steps,
        timestep_spacing=timestep_spacing,
        steps_offset=steps_offset,
        set_alpha_to_one=set_alpha_to_one,
        fixed_stride=fixed_stride,
    )
    count = len(path.grid.times)
    if not skip_prk_steps and count < 4:
        raise ValueError(f"steps: expected 4 or more, or skip_prk_steps, got {count}")
    strided = (
        schedule
        if isinstance(schedule, DiscreteSchedule) and isinstance(steps, int) and fixed_stride
        else None
    )
    if skip_prk_steps:
        evaluations = [*_start_again(path, strided), *_linear_multistep(path, first=1, apart=2)]
    else:
        evaluations = [*_runge_kutta(path, schedule, strided), *_linear_multistep(path, first=3, apart=4)]
    return _plan(evaluations, levels_of(path.grid)[-1], kind, mean_of_eps, 3 if skip_prk_steps else 4)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of the model, and DDIM from s to t after it.

    Attributes:
        told, level: what the model is told, and the level there.
        weights: of the predictions in the mean, by how many evaluations ago they were made; divided by their sum.
        base: the x at s is that of so many evaluations before.
    """

    told: float
    level: Level
    s: Level
    t: Level
    weights: Mapping[int, float]
    base: int = 0


def _start_again(path: Strides, strided: DiscreteSchedule | None) -> Iterator[_Evaluation]:
    """The first step, twice. Trap: diffusers' second start is T//S above the end, wherever the first was."""
    times, (s, *others) = path.grid.times, path.at
    yield _Evaluation(times[0], s, s, path.to[0], {0: 1.0})
    if others:
        if strided:
            s = strided.level(times[1] + strided.num_train_timesteps // len(times))
        yield _Evaluation(times[1], others[0], s, others[0], {0: 1.0, 1: 1.0}, base=1)


def _runge_kutta(
    path: Strides, schedule: Schedule, strided: DiscreteSchedule | None
) -> Iterator[_Evaluation]:
    """Three steps of four evaluations."""
    for (time, s), (end, t) in pairwise(list(zip(path.grid.times, path.at, strict=True))[:4]):
        if strided:
            half = strided.num_train_timesteps // len(path.grid.times) // 2
            middle, first = end + half, strided.level(time - half)
            level = strided.level(middle)
        else:
            middle, level = schedule.at((level_ratio(*s) + level_ratio(*t)) / 2)
            first = level
        yield _Evaluation(time, s, s, first, {0: 1.0})
        yield _Evaluation(middle, level, s, level, {0: 1.0}, base=1)
        yield _Evaluation(middle, level, s, t, {0: 1.0}, base=2)
        yield _Evaluation(end, t, s, t, {0: 1.0, 1: 2.0, 2: 2.0, 3: 1.0}, base=3)


def _linear_multistep(path: Strides, *, first: int, apart: int) -> Iterator[_Evaluation]:
    """The steps from `first` on. Each step before it has one prediction in their means, `apart` evaluations apart."""
    for n, (time, s, t) in enumerate(zip(path.grid.times, path.at, path.to, strict=True)):
        if n >= first:
            ages = [n - k if k >= first else n - first + apart * (first - k) for k in range(n, -1, -1)][:4]
            yield _Evaluation(time, s, s, t, dict(zip(ages, ADAMS[len(ages)], strict=True)))


def _plan(evaluations: list[_Evaluation], end: Level, kind: str, mean_of_eps: bool, order: int) -> Plan:
    """Rows: e, what the means are of; the sum of e; a difference d; x'.

    The sum has integer weights, which float32 has exactly, and is divided after it: rounded fractions would not add up
    to 1, the same error in every step.
    """
    of = "epsilon" if mean_of_eps else kind
    bases = ["x", *(f"base{n}" for n in range(1, 1 + max(e.base for e in evaluations)))]
    past = ["e", *(f"e{n}" for n in range(1, 1 + max(max(e.weights) for e in evaluations)))]
    inputs, rows = ("x", "prediction", *bases[1:], *past[1:]), ("e", "sum", "d", "x'")
    table = Table(len(evaluations), inputs, rows)
    for i, evaluation in enumerate(evaluations):
        count = math.fsum(evaluation.weights.values())
        table.set(i, "e", conversion(kind, evaluation.level)[1] if mean_of_eps else {"prediction": 1.0})
        table.set(i, "sum", {past[age]: w for age, w in evaluation.weights.items()})
        line = combine(
            *zip(evaluation.t, conversion(of, evaluation.s), strict=True)
        )  # alpha_t x0 + sigma_t eps
        _set_x(table, i, bases[evaluation.base], line["x"], line["prediction"] / count)
    alphas, sigmas = torch.tensor([*(e.level for e in evaluations), end], dtype=torch.float64).unbind(-1)
    return Plan(
        solver="pndm",
        table=table.data,
        timesteps=timestep_tensor([e.told for e in evaluations]),
        alphas=alphas.contiguous(),
        sigmas=sigmas.contiguous(),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"}
        | dict(zip(bases[1:], bases, strict=False))
        | dict(zip(past[1:], past, strict=False)),
        prediction=kind,
        order=order,
    )


def _set_x(table: Table, i: int, x: str, on_x: float, on_sum: float) -> None:
    """x' = on_x x + on_sum sum, through the row d.

    In a short step d is the change of x: a coefficient near 1, rounded, would move x at every step. In a long one the
    two terms nearly cancel. They do so in d, whose coefficients float32 has exactly; x' has the rest of the second.
    """
    if 1 / 2 < on_x < 2:
        table.set(i, "d", {x: on_x - 1, "sum": on_sum})
        table.set(i, "x'", {x: 1.0, "d": 1.0})
    else:
        ratio = float(np.float32(on_sum / on_x)) if on_x else 0.0
        table.set(i, "d", {x: 1.0, "sum": ratio})
        table.set(i, "x'", {"d": on_x, "sum": on_sum - on_x * ratio})
