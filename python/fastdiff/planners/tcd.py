# SPDX-License-Identifier: Apache-2.0
"""Trajectory consistency distillation: Zheng et al. 2024, "Trajectory Consistency Distillation: Improved Latent
Consistency Distillation by Semi-Linear Consistency Function with Trajectory Mapping" (arXiv 2402.19159).
"""

from __future__ import annotations

import math

import torch

from fastdiff.planners._distilled import distilled_grid
from fastdiff.planners._tables import (
    Level,
    Table,
    combine,
    conversion,
    levels_of,
    prediction_type,
    set_x0,
    timestep_tensor,
    x0_rows,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import DiscreteSchedule, Schedule, Steps


def tcd(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    eta: float = 0.3,
    original_inference_steps: int | None = 50,
    strength: float = 1.0,
) -> Plan:
    """x_s = alpha_s x0 + sigma_s eps, then noise from s up to t': strategic stochastic sampling.

        s = floor((1 - eta) t')    x' = (alpha'/alpha_s) x_s + sqrt(1 - (alpha'/alpha_s)^2) z

    t' is the next timestep. The last step goes to timestep 0 without noise, which is the first training level and not
    sigma = 0. eta = 0 is deterministic, namely DDIM; eta = 1 goes to timestep 0 and back each time, as multistep
    consistency sampling does. The defaults give what diffusers' `TCDScheduler` gives. Its `set_alpha_to_one`,
    `steps_offset`, `timestep_spacing`, `clip_sample` and `thresholding` have no effect.

    Args:
        schedule: one with a level per training timestep.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        eta: 0 to 1; gamma in the paper.
        original_inference_steps: N of the distillation; the steps are chosen among T//N k - 1, k = 1 ... N. None: among
            all training timesteps. (Trap: so does diffusers' `set_timesteps` for any number passed there.)
        strength: in (0, 1]: keep the last part of the schedule, for image-to-image.

    Raises:
        TypeError: a schedule without training timesteps.
        ValueError: unknown names, bad ranges, eps prediction at alpha = 0.
    """
    kind = prediction_type(prediction)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    grid = distilled_grid(schedule, steps, original_inference_steps, strength)
    assert isinstance(schedule, DiscreteSchedule)
    levels = [*levels_of(grid)[:-1], schedule.level(0)]

    inputs, rows = ("x", "prediction"), (*x0_rows(kind), "x'")
    table = Table(len(grid.times), inputs, rows)
    for i, after in enumerate([*grid.times[1:], 0.0]):
        set_x0(table, i, kind, levels[i])
        table.set(i, "x'", _step(kind, levels[i], schedule.level(_floor(1 - eta, after)), levels[i + 1]))

    alphas, sigmas = zip(*levels, strict=True)
    return Plan(
        solver="tcd",
        table=table.data,
        timesteps=timestep_tensor(grid.times),
        alphas=torch.tensor(alphas, dtype=torch.float64),
        sigmas=torch.tensor(sigmas, dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"},
        prediction=kind,
        order=1,
    )


def _step(kind: str, start: Level, middle: Level, end: Level) -> dict[str, float]:
    """x' in terms of x, prediction, x0 and z."""
    kept = end[0] / middle[0]
    noise = math.sqrt(max(1 - kept**2, 0.0))
    return combine(
        (kept * middle[0], {"x0": 1.0}),
        (kept * middle[1], conversion(kind, start)[1]),
        (noise, {"z": 1.0}),
    )


def _floor(share: float, t: float) -> int:
    """floor(share t), the product rounded to float32: 0.1 times 10 is then 1, where float64 has 1 - 0.9 < 0.1."""
    return math.floor(float(torch.tensor(share, dtype=torch.float32) * torch.tensor(t, dtype=torch.float32)))
