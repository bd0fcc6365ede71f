# SPDX-License-Identifier: Apache-2.0
"""Consistency models."""

from __future__ import annotations

import dataclasses
import math

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("CMStochasticIterativeScheduler", keywords=("timesteps",))
def consistency(o: Options) -> Plan:
    """Multistep consistency sampling on Karras' levels. x here is `scale_model_input` of its sample.

    Trap: it starts from sigma_max times noise also where explicit timesteps leave out the first level.
    """
    low, high, sigma_data, count = o["sigma_min"], o["sigma_max"], o["sigma_data"], o["num_train_timesteps"]
    levels = schedules.karras(low, high, o["rho"])
    ratios = [levels.ratio(k / (count - 1)) for k in _indices(o, count)]
    alphas = [1 / math.hypot(r, sigma_data) for r in ratios]
    schedule = schedules.from_levels(
        [250 * math.log(r) for r in ratios],
        (*alphas, 1.0),
        (*(r * a for r, a in zip(ratios, alphas, strict=True)), 0.0),
    )
    plan = planners.consistency(
        schedule,
        schedule.steps,
        sigma_min=low,
        sigma_data=sigma_data,
        s_noise=o["s_noise"],
        clip_sample=1.0 if o["clip_denoised"] else None,
    )
    return dataclasses.replace(plan, init_noise_sigma=high * alphas[0])


def _indices(o: Options, count: int) -> list[int]:
    """Which of the training levels, counted from the noisiest."""
    steps = o.steps
    if count < 2:
        o.refuse("num_train_timesteps", "its levels are 0/0")
    if not isinstance(steps, int):
        return sorted(int(t) for t in steps)
    if not 1 <= steps <= count:
        raise ValueError(f"steps: expected 1 to {count}, got {steps}")
    return [k * (count // steps) for k in range(steps)]
