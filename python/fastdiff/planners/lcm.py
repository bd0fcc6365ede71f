# SPDX-License-Identifier: Apache-2.0
"""Latent consistency models: Luo et al. 2023, "Latent Consistency Models: Synthesizing High-Resolution Images with
Few-Step Inference" (arXiv 2310.04378), and LCM-LoRA (arXiv 2311.05556), whose sampler is the same.
"""

from __future__ import annotations

import math

import torch

from fastdiff.planners._distilled import distilled_grid
from fastdiff.planners._execution import Threshold
from fastdiff.planners._tables import (
    Table,
    clip_or_threshold,
    levels_of,
    prediction_type,
    set_x0,
    timestep_tensor,
    x0_rows,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Schedule, Steps


def lcm(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    original_inference_steps: int = 50,
    strength: float = 1.0,
    timestep_scaling: float = 10.0,
    sigma_data: float = 0.5,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
) -> Plan:
    """x' = alpha' f + sigma' z, with f = c_skip x + c_out x0 the consistency function; the last step returns f.

        c_skip = sigma_data^2 / (tau^2 + sigma_data^2)    c_out = tau / sqrt(tau^2 + sigma_data^2)
        tau = timestep_scaling t

    Multistep latent consistency sampling with the parametrisation of section 4.1. The boundary condition f(x, 0) = x
    holds exactly; at t = 19, the last timestep of the usual schedule, c_skip is 7e-6.
    The defaults give what diffusers' `LCMScheduler` gives. Its `set_alpha_to_one`, `steps_offset` and
    `timestep_spacing` have no effect.

    Trap: with explicit timesteps and strength < 1 diffusers adds noise after the last step too: its `prev_sample` is
    at the last timestep's level, its `denoised` is what this plan returns.

    Args:
        schedule: one with a level per training timestep.
        steps: how many, at most int(original_inference_steps strength), or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        original_inference_steps: N of the distillation; the steps are chosen among T//N k - 1, k = 1 ... N.
        strength: in (0, 1]: keep the last part of the schedule, for image-to-image.
        timestep_scaling: of tau.
        sigma_data: of the boundary scalings.
        clip_sample: clamp x0 to (-r, r), or to (low, high).
        threshold: dynamic threshold of x0 instead.

    Raises:
        TypeError: a schedule without training timesteps.
        ValueError: unknown names, bad ranges, eps prediction at alpha = 0.
    """
    kind = prediction_type(prediction)
    clamp = clip_or_threshold(clip_sample, threshold)
    grid = distilled_grid(schedule, steps, original_inference_steps, strength)
    levels = levels_of(grid)

    inputs, rows = ("x", "prediction"), (*x0_rows(kind), "x'")
    table = Table(len(grid.times), inputs, rows)
    for i, t in enumerate(grid.times):
        c_skip, c_out = _boundary(timestep_scaling * t, sigma_data)
        alpha_t, sigma_t = levels[i + 1]  # (1, 0) after the last step
        set_x0(table, i, kind, levels[i], clamp)
        table.set(i, "x'", {"x": alpha_t * c_skip, "x0": alpha_t * c_out, "z": sigma_t})

    return Plan(
        solver="lcm",
        table=table.data,
        timesteps=timestep_tensor(grid.times),
        alphas=torch.tensor(grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"},
        prediction=kind,
        order=1,
        threshold=threshold,
    )


def _boundary(tau: float, sigma_data: float) -> tuple[float, float]:
    """c_skip, c_out."""
    norm = math.hypot(tau, sigma_data)
    return (sigma_data / norm) ** 2, tau / norm
