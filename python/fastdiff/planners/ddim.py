# SPDX-License-Identifier: Apache-2.0
"""DDIM: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models" (arXiv 2010.02502)."""

from __future__ import annotations

import torch

from fastdiff.planners._execution import Threshold
from fastdiff.planners._strides import denoising_rows, set_denoising, strides
from fastdiff.planners._tables import (
    Table,
    clip_or_threshold,
    prediction_type,
    timestep_tensor,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Schedule, Spacing, Steps


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
    threshold: Threshold | None = None,
    use_clipped_model_output: bool = False,
    fixed_stride: bool = True,
) -> Plan:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, equation (12), with the (clipped) x0 in a row of its own.

    The noise is s = eta (sigma'/sigma) sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2), equation (16) written for
    any alpha and sigma: eta = 0 is deterministic, eta = 1 is ancestral sampling (DDPM with the small
    variance). The defaults give what diffusers' `DDIMScheduler(clip_sample=False)` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        eta: 0 to 1, or more while s <= sigma' in every step.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        set_alpha_to_one: end at sigma = 0; False ends at the first training level.
        clip_sample: clamp x0 to (-r, r), or to (low, high). diffusers' `clip_sample_range`.
        threshold: dynamic threshold of x0 instead.
        use_clipped_model_output: derive eps again from the clipped x0.
        fixed_stride: step from t to t - T//S as diffusers does, which is not the next timestep when S does
            not divide T or the spacing is "linspace". False steps to the next timestep, as equation (12) asks
            for. An explicit list of timesteps always does.

    Raises:
        ValueError: unknown names, bad ranges, an eta that is negative or too large, increasing levels, eps
            prediction at alpha = 0.
    """
    kind = prediction_type(prediction)
    if not eta >= 0:
        raise ValueError(f"eta: expected 0 or more, got {eta}")
    clamp = clip_or_threshold(clip_sample, threshold)
    way = strides(
        schedule,
        steps,
        timestep_spacing=timestep_spacing,
        steps_offset=steps_offset,
        set_alpha_to_one=set_alpha_to_one,
        fixed_stride=fixed_stride,
    )
    cuts = (clamp is not None or threshold is not None) and not use_clipped_model_output
    inputs, rows = ("x", "prediction"), denoising_rows(kind, cuts=cuts)
    table = Table(len(way.at), inputs, rows)
    for i, (s, t) in enumerate(zip(way.at, way.to, strict=True)):
        set_denoising(table, i, kind, s, t, clamp, eta)

    return Plan(
        solver="ddim",
        table=table.data,
        timesteps=timestep_tensor(way.grid.times),
        alphas=torch.tensor(way.grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(way.grid.sigmas, dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"},
        prediction=kind,
        order=1,
        threshold=threshold,
    )
