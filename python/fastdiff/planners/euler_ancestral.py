# SPDX-License-Identifier: Apache-2.0
"""Ancestral sampling by Euler's method: a step down below the next level, then noise up to it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from fastdiff.planners._euler import Weights, default_prediction, set_step, step_rows
from fastdiff.planners._tables import Level, Table, levels_of, timestep_tensor
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, FlowSchedule, Placement, Schedule, Spacing, Steps
from fastdiff.schedules._grid import level_ratio


def euler_ancestral(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    rectified_flow: bool | None = None,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """x'/alpha' = x0 + r_down eps + s_noise r_up z, r_down^2 + r_up^2 = r'^2, with r = sigma/alpha.

        r_up = eta r' sqrt(1 - (r'/r)^2)

    is the deviation of q(x'|x, x0) at eta = 1: DDPM's posterior and DDIM's eta = 1 (Song et al. 2021, equation (16)).
    For a rectified flow k-diffusion instead interpolates the level itself,

        sigma_down = sigma' (1 + eta (sigma'/sigma - 1)),    r_down = sigma_down/(1 - sigma_down)

    The defaults give what diffusers' `EulerAncestralDiscreteScheduler` gives, whose x is our x/alpha, and on a flow
    schedule what its `LTXEulerAncestralRFScheduler` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, reverse_flow, edm or edm_v.
            Default: flow on a flow schedule, edm on `schedules.edm`, epsilon elsewhere.
        eta: 0 (deterministic: `euler`) to 1.
        s_noise: factor of the noise, 0 or more; other than 1 the noise level is not what the model is told.
        rectified_flow: use the second rule, which needs alpha = 1 - sigma. Default: on a flow schedule.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule; "linspace" is not rounded.

    Raises:
        ValueError: unknown names, eta outside [0, 1], negative s_noise, eps prediction at alpha = 0, rectified_flow
            elsewhere.
    """
    kind = default_prediction(prediction, schedule)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    if s_noise < 0:
        raise ValueError(f"s_noise: expected 0 or more, got {s_noise}")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, rounded=False), final_sigmas_type)
    levels = levels_of(grid)
    straight = isinstance(schedule, FlowSchedule) if rectified_flow is None else rectified_flow
    if straight and any(abs(alpha + sigma - 1) > 1e-6 for alpha, sigma in levels):
        raise ValueError("rectified_flow: expected a schedule with alpha = 1 - sigma")

    table = Table(len(grid.times), ("x", "prediction"), step_rows(kind))
    for i, (level, target) in enumerate(pairwise(levels)):
        alpha, down, up = (_flow_weights if straight else _weights)(level, target, eta)
        set_step(table, i, kind, level, (alpha, down, s_noise * up))

    return Plan(
        solver="euler_ancestral",
        table=table.data,
        timesteps=timestep_tensor(grid.times),
        alphas=torch.tensor(grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
        inputs=("x", "prediction"),
        rows=step_rows(kind),
        carry={"x": "x'"},
        prediction=kind,
        order=1,
    )


def _weights(level: Level, target: Level, eta: float) -> Weights:
    """Of x0, eps and z."""
    alpha, sigma = target
    q = level_ratio(*target) / level_ratio(*level)
    up = eta * math.sqrt((1 - q) * (1 + q))
    return alpha, sigma * math.sqrt((1 - eta) * (1 + eta) + (eta * q) ** 2), sigma * up


def _flow_weights(level: Level, target: Level, eta: float) -> Weights:
    alpha, sigma = target
    q = sigma / level[1]
    below = sigma * (1 + eta * (q - 1))  # sigma_down
    down = alpha * below / (1 - below)
    gap = sigma * eta * (1 - q) / (1 - below)  # sigma - down
    return alpha, down, math.sqrt(gap * (sigma + down))
