# SPDX-License-Identifier: Apache-2.0
"""Score-based generative models: the variance exploding and the variance preserving SDE."""

from __future__ import annotations

import dataclasses
import math

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules._grid import ramp


@reproduces("ScoreSdeVeScheduler", keywords=("sampling_eps",))
def variance_exploding(o: Options) -> Plan:
    """`step_pred` at each timestep after `set_timesteps(n)` and `set_sigmas(n)`, and the mean of the last one.

    The model is told sigma, as by its pipeline. The corrector's steps depend on norms over the batch: with
    `correct_steps` other than 0 this is refused; `planners.langevin` has one with fixed step sizes.
    Trap: a single step starts at sigma_max and is taken at sigma_min.
    """
    if o["correct_steps"] != 0:
        o.refuse(
            "correct_steps", "a corrector's step size is a ratio of norms; planners.langevin has fixed ones"
        )
    o.unaffecting("snr", "num_train_timesteps")
    count, low, high = _count(o), o["sigma_min"], o["sigma_max"]
    eps = o.call("sampling_eps", o["sampling_eps"])
    times = ramp(1.0, eps, count)
    sigmas = [math.exp(level) for level in ramp(math.log(low), math.log(high), count)]
    indices = [int(t * (count - 1)) for t in times]
    # NOTE: fractions are cut off, so that a large eps skips or repeats levels; only all of them are one sampler
    if indices != list(range(count - 1, -1, -1)):
        o.refuse("sampling_eps", f"with {count} steps it does not visit each level once")
    schedule = schedules.from_levels(
        [low * (high / low) ** t for t in times],
        (1.0,) * (count + 1),
        (*(sigmas[k] for k in indices), 0.0),
    )
    plan = planners.reverse_sde(schedule, count, kind="reverse_diffusion")
    return dataclasses.replace(plan, init_noise_sigma=high)


@reproduces("ScoreSdeVpScheduler")
def variance_preserving(o: Options) -> Plan:
    """`step_pred` at each timestep, and the mean of the last one. The model predicts eps and is told t in (0, 1].

    Trap: its steps have length 1/n, though its timesteps are (1 - sampling_eps)/(n - 1) apart.
    """
    o.unaffecting("num_train_timesteps")
    count, low, high = _count(o), float(o["beta_min"]), float(o["beta_max"])
    times = ramp(1.0, o["sampling_eps"], count)
    logs = [-(t**2) / 4 * (high - low) - t / 2 * low for t in times]
    schedule = schedules.from_levels(
        times,
        (*map(math.exp, logs), 1.0),
        (*(math.sqrt(-math.expm1(2 * log)) for log in logs), 0.0),
    )
    betas = [low + t * (high - low) for t in times]
    rates = [(-beta / (2 * count), beta / count) for beta in betas]
    return planners.reverse_sde(schedule, count, kind="euler_maruyama", prediction="epsilon", rates=rates)


def _count(o: Options) -> int:
    steps = o.steps
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    return steps
