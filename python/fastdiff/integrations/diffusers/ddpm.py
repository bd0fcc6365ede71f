# SPDX-License-Identifier: Apache-2.0
"""The DDPM schedulers: discrete, of unCLIP, and of Würstchen."""

from __future__ import annotations

import math

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules import LevelSchedule


@reproduces("DDPMScheduler", "DDPMParallelScheduler", keywords=("timesteps",))
def ddpm(o: Options) -> Plan:
    """Fixed variances, and the learned one within its range.

    Trap: the fractions of given timesteps are cut off.
    """
    steps = o.steps if isinstance(o.steps, int) else [math.trunc(t) for t in o.steps]
    variance = o["variance_type"]
    if variance == "fixed_large_log":
        o.refuse("variance_type", "it takes the root of a negative logarithm; fixed_large is what is meant")
    if variance == "learned":
        o.refuse(
            "variance_type",
            "it takes the root of the model's output; planners.ddpm has the published e^(v/2)",
        )
    return planners.ddpm(
        _schedules.discrete(o),
        steps,
        prediction=o["prediction_type"],
        variance_type=variance,
        timestep_spacing=o["timestep_spacing"],
        steps_offset=o["steps_offset"],
        clip_sample=_schedules.clip(o),
        threshold=_schedules.threshold(o),
    )


@reproduces("UnCLIPScheduler")
def unclip(o: Options) -> Plan:
    """As its pipelines call it, with the following timestep as `prev_timestep`."""
    o.require("beta_schedule", "squaredcos_cap_v2")
    if o.steps == 1:
        raise ValueError(
            "plan_from: UnCLIPScheduler: it divides by num_inference_steps - 1; use 2 steps or more"
        )
    return planners.ddpm(
        schedules.cosine(o["num_train_timesteps"]),
        o.steps,
        prediction=o.require("prediction_type", "epsilon", "sample"),
        variance_type=o.require("variance_type", "fixed_small_log", "learned_range"),
        timestep_spacing="linspace",
        clip_sample=_schedules.clip(o),
    )


@reproduces("DDPMWuerstchenScheduler", keywords=("timesteps",))
def wuerstchen(o: Options) -> Plan:
    """Cosine levels at any time in [0, 1]; the end point is the last of the timesteps. epsilon prediction."""
    schedule = _wuerstchen_levels(o)
    ends_noisy = _wuerstchen_times(o)[-1] != 0
    return planners.ddpm(schedule, schedule.steps, noise_at_end=ends_noisy)


def _wuerstchen_times(o: Options) -> list[float]:
    steps = o.steps
    return [1 - k / steps for k in range(steps + 1)] if isinstance(steps, int) else list(map(float, steps))


def _wuerstchen_levels(o: Options) -> LevelSchedule:
    """Trap: alphas_cumprod is clamped to [1e-4, 1 - 1e-4], so the run ends there and not at sigma = 0.

    A second step at the lower limit would evaluate the model and change nothing: refused.
    """
    times, scaler, s = _wuerstchen_times(o), o["scaler"], o["s"]
    squares = []
    for t in times:
        t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
        ab = (math.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)) ** 2
        squares.append(min(max(ab, 1e-4), 1 - 1e-4))
    if len(times) > 2 and squares[0] == squares[1]:
        o.refuse("scaler", "its lowest alphas_cumprod is 1e-4; with so many steps two steps have one level")
    return schedules.from_levels(
        times[:-1], [math.sqrt(ab) for ab in squares], [math.sqrt(1 - ab) for ab in squares]
    )
