# SPDX-License-Identifier: Apache-2.0
"""Multistep DPM-Solver++: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models" (arXiv 2211.01095)."""

from __future__ import annotations

import math
from typing import Literal

import torch

from fastdiff.planners._tables import Table, clamp_range, phi, prediction_type, timestep_tensor, x0_and_eps
from fastdiff.planners.plan import Plan
from fastdiff.schedules import (
    DiscreteSchedule,
    Final,
    Grid,
    Placement,
    Schedule,
    SigmaSchedule,
    Spacing,
    Steps,
)

_FEW_STEPS = 15  # below this lower_order_final takes effect


def dpm_solver_pp(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
) -> Plan:
    """Multistep DPM-Solver++ of order 1 or 2 ("2M"), row 0 being the (clipped) x0, which the history keeps.

    With lambda = ln(alpha/sigma), h = lambda_t - lambda_s, h0 the h of the step before, and m0, m1 the x0
    predictions of this step and of the one before, D = (m0 - m1) h/h0:

        order 1   x_t = (sigma_t/sigma_s) x - alpha_t (e^-h - 1) m0     section 4.1; this is DDIM
        midpoint  x_t = order 1 - alpha_t (e^-h - 1)/2 D                algorithm 2
        heun      x_t = order 1 + alpha_t ((e^-h - 1)/h + 1) D          the Taylor expansion of section 4.1

    The defaults give what diffusers' `DPMSolverMultistepScheduler(algorithm_type="dpmsolver++")` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        order: 1 or 2. The first step has order 1, for want of a history.
        solver_type: form of the second-order term.
        lower_order_final: last step of order 1 when there are fewer than 15 steps.
        euler_at_final: last step of order 1 always; where sigma ends at 0 it is so in any case, since h is
            infinite there.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r) or (low, high).

    Raises:
        ValueError: another order, unknown names, bad ranges, eps prediction at alpha = 0.
    """
    kind = prediction_type(prediction)
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 or 2, got {order}")
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type: expected midpoint or heun, got {solver_type!r}")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, endpoint=False), final_sigmas_type)
    count = len(grid.times)
    first_at_end = final_sigmas_type == "zero" or euler_at_final or (lower_order_final and count < _FEW_STEPS)

    inputs = ("x", "prediction", "m1")[: order + 1]
    table = Table(count, inputs, ("x0", "x'"))
    clamp = clamp_range(clip_sample)
    for i in range(count):
        x0, _ = x0_and_eps(kind, grid.alphas[i], grid.sigmas[i])
        second = order == 2 and i > 0 and not (first_at_end and i == count - 1)
        table.set(i, "x0", {"x": x0[0], "prediction": x0[1]}, clamp=clamp)
        table.set(i, "x'", _second_order(grid, i, solver_type) if second else _first_order(grid, i))

    return Plan(
        solver="dpm_solver_pp",
        table=table.data,
        timesteps=timestep_tensor(_model_times(schedule, grid.times)),
        alphas=torch.tensor(grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
        inputs=inputs,
        rows=("x0", "x'"),
        carry={"x": "x'", "m1": "x0"} if order == 2 else {"x": "x'"},
        prediction=kind,
        order=order,
    )


def _first_order(grid: Grid, i: int) -> dict[str, float]:
    """x_t = (sigma_t/sigma_s) x + (alpha_t - sigma_t alpha_s/sigma_s) m0.

    That is -alpha_t (e^-h - 1) without lambda: exact at sigma_t = 0, where m0 has the weight alpha_t = 1 and
    x none.
    """
    alpha_s, alpha_t = grid.alphas[i : i + 2]
    sigma_s, sigma_t = grid.sigmas[i : i + 2]
    return {"x": sigma_t / sigma_s, "x0": alpha_t - sigma_t * alpha_s / sigma_s}


def _second_order(grid: Grid, i: int, solver_type: str) -> dict[str, float]:
    """First order plus the weight of D; h/h0 is 0 where h0 is infinite (alpha = 0 one step before)."""
    lambda_1, lambda_s, lambda_t = grid.lambdas[i - 1 : i + 2]
    h, h0 = lambda_t - lambda_s, lambda_s - lambda_1
    terms = _first_order(grid, i)
    slope = terms["x0"] / 2 if solver_type == "midpoint" else grid.alphas[i + 1] * h * phi(2, -h)
    d = slope * h / h0
    return {"x": terms["x"], "x0": terms["x0"] + d, "m1": -d}


def _model_times(schedule: Schedule, times: tuple[float, ...]) -> tuple[float, ...]:
    """The times that diffusers gives to the model: whole numbers.

    Trap: it rounds Karras timesteps, but not on the cosine schedule, and cuts off every other fraction.
    """
    if isinstance(schedule, DiscreteSchedule):
        return times  # whole already, or the caller's own
    if isinstance(schedule, SigmaSchedule):
        if schedule.base is None:
            return times  # no peer: the model is told sigma
        if schedule.name == "karras" and schedule.base.name != "cosine":
            return tuple(float(round(t)) for t in times)
    return tuple(float(math.trunc(t)) for t in times)
