# SPDX-License-Identifier: Apache-2.0
"""DDPM: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239); Nichol and Dhariwal 2021,
"Improved Denoising Diffusion Probabilistic Models" (arXiv 2102.09672)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch

from fastdiff.planners._execution import Threshold
from fastdiff.planners._posterior import Posterior
from fastdiff.planners._tables import (
    Table,
    clip_or_threshold,
    levels_of,
    prediction_type,
    set_next_x,
    set_x0,
    timestep_tensor,
    x0_rows,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Placement, Schedule, Spacing, Steps

Variance = Literal[
    "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
]
SMALLEST = 1e-10  # deviation, in the place of 0 where its logarithm is taken


def ddpm(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    variance_type: Variance = "fixed_small",
    timestep_spacing: Spacing = "leading",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
    noise_at_end: bool = True,
) -> Plan:
    """x' = r (sigma'/sigma) x + alpha' (1 - r^2) x0 + s z, r = (alpha/sigma)/(alpha'/sigma'): Ho et al., algorithm 2.

    The mean is that of the posterior, equation (7), on any subset of the timesteps; the (clipped) x0 has a row of its
    own. The deviation s (variance_type):

        fixed_small, fixed_small_log   small = sigma' sqrt(1 - r^2), beta~ of equation (7)
        fixed_large, fixed_large_log   large = sigma sqrt(1 - r^2), which is sqrt(beta)
        learned                        e^(v/2)
        learned_range                  large^f small^(1 - f), f = (v + 1)/2; Nichol and Dhariwal, equation (15)

    with v from a model of 2C output channels, the second half of them. The names with `log` mean the same.

    The defaults give what diffusers' `DDPMScheduler(clip_sample=False)` gives. Trap: there fixed_large_log is NaN, the
    root of a negative logarithm, and learned is sqrt(v).

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow.
        variance_type: the deviation.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r), or to (low, high). diffusers' `clip_sample_range`.
        threshold: dynamic threshold of x0 instead.
        noise_at_end: Trap: diffusers' last step adds noise too unless its timestep is 0, to what should be x0: that of
            fixed_large in full, of learned_range between 1e-10 and that. False: none, as in algorithm 2.

    Raises:
        ValueError: unknown names, bad ranges, increasing levels, eps prediction at alpha = 0.
    """
    kind = prediction_type(prediction)
    if variance_type not in get_args(Variance):
        raise ValueError(
            f"variance_type: expected one of {', '.join(get_args(Variance))}, got {variance_type!r}"
        )
    clamp = clip_or_threshold(clip_sample, threshold)
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset))
    levels = levels_of(grid)
    posteriors = [Posterior(s, t) for s, t in pairwise(levels)]
    ends_noisy = noise_at_end and grid.times[-1] != 0
    noise, deviation = _noise(variance_type, posteriors, ends_noisy)
    inputs, rows = ("x", "prediction"), (*x0_rows(kind), "dx", "x'")
    table = Table(len(posteriors), inputs, rows)
    for i, q in enumerate(posteriors):
        set_x0(table, i, kind, q.s, clamp)
        set_next_x(table, i, {"x": q.x, "x0": q.x0, "z": noise[i]})

    return Plan(
        solver="ddpm",
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
        learned_variance=deviation,
    )


def _noise(
    variance_type: Variance, posteriors: Sequence[Posterior], ends_noisy: bool
) -> tuple[list[float], torch.Tensor | None]:
    """The noise coefficient n of each step and, where learned, (a, b) of its factor exp(a + b v)."""
    if variance_type == "learned":
        noise, slopes = [1.0 for _ in posteriors], [0.5 for _ in posteriors]
    elif variance_type == "learned_range":
        # NOTE: large^f small^(1 - f) = sqrt(large small) (large/small)^(v/2). The first factor is known: it goes into
        # the table, not into the exponent, where float32 would round it as a part of a larger number
        bounds = [(max(q.small, SMALLEST), q.large) for q in posteriors]
        noise = [math.sqrt(small * large) for small, large in bounds]
        slopes = [math.log(large / small) / 2 for small, large in bounds]
    else:
        noise = [q.small if variance_type.startswith("fixed_small") else q.large for q in posteriors]
        slopes = []
    if not ends_noisy:
        noise[-1] = 0.0
    deviation = torch.tensor([(0.0, b) for b in slopes], dtype=torch.float64) if slopes else None
    return noise, deviation
