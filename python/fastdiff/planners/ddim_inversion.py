# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: Song, Meng and Ermon 2021, section 4.3; Mokady et al. 2023, "Null-text Inversion for Editing Real
Images using Guided Diffusion Models" (arXiv 2211.09794), section 3.1."""

from __future__ import annotations

import torch

from fastdiff.planners._strides import noising_rows, set_noising, strides
from fastdiff.planners._tables import Table, clamp_range, prediction_type, timestep_tensor
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Schedule, Spacing, Steps


def ddim_inversion(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    timestep_spacing: Spacing = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
    clip_sample: float | tuple[float, float] | None = None,
    fixed_stride: bool = True,
) -> Plan:
    """From data to noise: x_t = alpha_t x0 + sigma_t eps, each step of `ddim` gone back from its end s to its start t.

    x0 and eps are what the prediction makes of x_s, at level s. But the model is told t: `ddim` goes from t to s by the
    model's output at (x_t, t), and its output at (x_s, t) is the nearest to that which an explicit step has. So
    `ddim` with the same arguments returns from the noise to x up to an error of first order in the step size.

    The defaults give what diffusers' `DDIMInverseScheduler(clip_sample=False)` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps of the `ddim` that is to be inverted.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        set_alpha_to_one: start at sigma = 0, from a clean x; False starts at the first training level.
        clip_sample: clamp x0 to (-r, r), or to (low, high). diffusers' `clip_sample_range`.
        fixed_stride: step from t - T//S to t as diffusers does; False steps from the timestep before. See `ddim`.

    Returns:
        A plan whose levels increase: `run` takes x at the last level of `ddim`, and returns it at the first.

    Raises:
        ValueError: unknown names, bad ranges, increasing levels, x0 prediction at sigma = 0.
    """
    kind, clamp = prediction_type(prediction), clamp_range(clip_sample)
    way = strides(
        schedule,
        steps,
        timestep_spacing=timestep_spacing,
        steps_offset=steps_offset,
        set_alpha_to_one=set_alpha_to_one,
        fixed_stride=fixed_stride,
    )
    clean, noisy, times = way.to[::-1], way.at[::-1], way.grid.times[::-1]
    inputs, rows = ("x", "prediction"), noising_rows(kind, cuts=clamp is not None)
    table = Table(len(times), inputs, rows)
    for i, (s, t) in enumerate(zip(clean, noisy, strict=True)):
        set_noising(table, i, kind, s, t, clamp)
    alphas, sigmas = zip(*clean, noisy[-1], strict=True)

    return Plan(
        solver="ddim_inversion",
        table=table.data,
        timesteps=timestep_tensor(times),
        alphas=torch.tensor(alphas, dtype=torch.float64),
        sigmas=torch.tensor(sigmas, dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"},
        prediction=kind,
        order=1,
    )
