# SPDX-License-Identifier: Apache-2.0
"""Consistency models: Song et al. 2023, "Consistency Models" (arXiv 2303.01469)."""

from __future__ import annotations

import math

import torch

from fastdiff.planners._tables import Level, Table, clamp_range, levels_of, timestep_tensor
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Schedule, SigmaSchedule, Steps


def consistency(
    schedule: Schedule,
    steps: Steps,
    *,
    sigma_min: float = 0.002,
    sigma_data: float = 0.5,
    s_noise: float = 1.0,
    clip_sample: float | tuple[float, float] | None = 1.0,
) -> Plan:
    """f at each level, then noise up to the next one: algorithm 1, multistep consistency sampling.

        f = c_skip x^ + c_out F    x^' = f + s_noise sqrt(sigma'^2 - sigma_min^2) z
        c_skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)
        c_out = (sigma - sigma_min) sigma_data / sqrt(sigma^2 + sigma_data^2)

    with the parametrisation of appendix C, whose f(x^, sigma_min) = x^ is exact. x^ = x0 + sigma eps is the paper's
    variable; the state is what the network sees, c_in x^ = x^ / sqrt(sigma^2 + sigma_data^2), until the last step,
    which returns f. On the levels that it chooses, this is diffusers' `CMStochasticIterativeScheduler`.

    Args:
        schedule: with alpha = c_in, as `schedules.edm` has. The model is told what the schedule says, ln(sigma)/4
            there; the paper's networks want 1000 times it: give such times and levels by `schedules.from_levels`.
        steps: how many. A schedule spaced in sigma is asked for one level more, whose last one, sigma_min, is not
            evaluated.
        sigma_min: the level at which f is the identity, epsilon in the paper.
        sigma_data: standard deviation of the data.
        s_noise: factor of the noise.
        clip_sample: clamp f to (-r, r), or to (low, high); None does not. diffusers' `clip_denoised`.

    Raises:
        ValueError: an empty range, a schedule with another alpha.
    """
    times, levels = _levels(schedule, steps)
    clamp = clamp_range(clip_sample)

    inputs, rows = ("x", "prediction"), ("x0", "x'")
    table = Table(len(times), inputs, rows)
    for i, (alpha, sigma) in enumerate(levels[:-1]):
        if not math.isclose(sigma**2 + (alpha * sigma_data) ** 2, 1):
            raise ValueError(
                f"schedule: expected alpha = c_in = 1/sqrt(sigma^2 + {sigma_data}^2), got {alpha}"
            )
        above = sigma / alpha - sigma_min
        c_skip = sigma_data**2 / (above**2 + sigma_data**2)
        table.set(i, "x0", {"x": c_skip / alpha, "prediction": above * sigma_data * alpha}, clamp=clamp)
        alpha_t, sigma_t = levels[i + 1]
        noise = s_noise * math.sqrt(max((sigma_t / alpha_t) ** 2 - sigma_min**2, 0.0))
        last = i == len(times) - 1
        table.set(i, "x'", {"x0": 1.0} if last else {"x0": alpha_t, "z": alpha_t * noise})

    return Plan(
        solver="consistency",
        table=table.data,
        timesteps=timestep_tensor(times),
        alphas=torch.tensor([alpha for alpha, _ in levels], dtype=torch.float64),
        sigmas=torch.tensor([sigma for _, sigma in levels], dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"},
        prediction="edm",
        order=1,
        init_noise_sigma=levels[0][1],
    )


def _levels(schedule: Schedule, steps: Steps) -> tuple[tuple[float, ...], list[Level]]:
    """S times and levels, and the end point. Of S + 1 spaced levels the last, where f is the identity, is left out."""
    if isinstance(schedule, SigmaSchedule) and isinstance(steps, int) and steps > 0:
        grid = schedule.grid(steps + 1)
        times, levels = grid.times[:-1], levels_of(grid)[:-2]
    else:
        grid = schedule.grid(steps)
        times, levels = grid.times, levels_of(grid)[:-1]
    return times, [*levels, (1.0, 0.0)]
