# SPDX-License-Identifier: Apache-2.0
"""DDIM: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models" (arXiv 2010.02502)."""

from __future__ import annotations

import math

import torch

from fastdiff.planners._tables import Table, clamp_range, prediction_type, timestep_tensor, x0_and_eps
from fastdiff.planners.plan import Plan
from fastdiff.schedules import DiscreteSchedule, Final, Placement, Schedule, Spacing, Steps


def ddim(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    timestep_spacing: Spacing = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
    clip_sample: float | tuple[float, float] | None = None,
    use_clipped_model_output: bool = False,
    fixed_stride: bool = True,
) -> Plan:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, equation (12), with row 0 the (clipped) x0.

    The noise is s = eta (sigma'/sigma) sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2), equation (16) written for
    any alpha and sigma: eta = 0 is deterministic, eta = 1 is ancestral sampling (DDPM with the small
    variance). The defaults give what diffusers' `DDIMScheduler(clip_sample=False)` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        eta: 0 to 1.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        set_alpha_to_one: end at sigma = 0; False ends at the first training level.
        clip_sample: clamp x0 to (-r, r), or to (low, high). diffusers' `clip_sample_range`.
        use_clipped_model_output: derive eps again from the clipped x0.
        fixed_stride: step from t to t - T//S as diffusers does, which is not the next timestep when S does
            not divide T or the spacing is "linspace". False steps to the next timestep, as equation (12) asks
            for. An explicit list of timesteps always does.

    Raises:
        ValueError: unknown names, bad ranges, eta outside [0, 1], eps prediction at alpha = 0.
    """
    kind = prediction_type(prediction)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    final: Final = "zero" if set_alpha_to_one else "sigma_min"
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset), final)
    targets = list(zip(grid.alphas[1:], grid.sigmas[1:], strict=True))
    if fixed_stride and isinstance(schedule, DiscreteSchedule) and isinstance(steps, int):
        stride = schedule.num_train_timesteps // steps
        targets = [schedule.level(t - stride) if t >= stride else targets[-1] for t in grid.times]

    table = Table(len(grid.times), ("x", "prediction"), ("x0", "x'"))
    clamp = clamp_range(clip_sample)
    for i, (alpha_t, sigma_t) in enumerate(targets):
        alpha, sigma = grid.alphas[i], grid.sigmas[i]
        x0, eps = x0_and_eps(kind, alpha, sigma)
        s = eta * _ancestral(alpha, sigma, alpha_t, sigma_t)
        c = math.sqrt(max(sigma_t**2 - s**2, 0.0))
        table.set(i, "x0", {"x": x0[0], "prediction": x0[1]}, clamp=clamp)
        if use_clipped_model_output:  # eps = (x - alpha x0)/sigma
            table.set(i, "x'", {"x": c / sigma, "x0": alpha_t - c * alpha / sigma, "z": s})
        else:
            table.set(i, "x'", {"x": c * eps[0], "prediction": c * eps[1], "x0": alpha_t, "z": s})

    return Plan(
        solver="ddim",
        table=table.data,
        timesteps=timestep_tensor(grid.times),
        alphas=torch.tensor(grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
        inputs=("x", "prediction"),
        rows=("x0", "x'"),
        carry={"x": "x'"},
        prediction=kind,
        order=1,
    )


def _ancestral(alpha: float, sigma: float, alpha_t: float, sigma_t: float) -> float:
    """Standard deviation of q(x_t | x_s, x0): equation (16) at eta = 1."""
    return sigma_t / sigma * math.sqrt(max(sigma**2 - (alpha / alpha_t * sigma_t) ** 2, 0.0))
