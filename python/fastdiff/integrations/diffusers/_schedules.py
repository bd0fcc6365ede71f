# SPDX-License-Identifier: Apache-2.0
"""The noise levels that diffusers' schedulers choose, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from fastdiff import schedules
from fastdiff.integrations.diffusers._options import Options
from fastdiff.planners import Threshold
from fastdiff.schedules import DiscreteSchedule, LevelSchedule, Placement, Schedule, SigmaSchedule, Steps
from fastdiff.schedules._grid import level_ratio, ramp, vp_level

Level = tuple[float, float]
# Where a list of levels ends: at sigma = 0, at the first training level, or with its last level again.
End = Literal["zero", "sigma_min", "last"]

_BETAS: dict[str, Callable[..., DiscreteSchedule]] = {
    "linear": schedules.linear,
    "scaled_linear": schedules.scaled_linear,
    "squaredcos_cap_v2": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "laplace": schedules.laplace,
}
_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
SMALLEST_HALF = 2.0**-24  # what the solvers put in the place of a terminal alphas_cumprod of 0


# ---- options that most classes share -------------------------------------------------------------------------


def discrete(o: Options, *, terminal: float = 0.0) -> DiscreteSchedule:
    """The training schedule.

    Args:
        terminal: alphas_cumprod of the last timestep under `rescale_betas_zero_snr`.
    """
    betas, name, count = o["trained_betas"], o["beta_schedule"], o["num_train_timesteps"]
    start, end = o["beta_start"], o["beta_end"]
    if betas is not None:
        schedule = schedules.from_betas(betas)
    elif name not in _BETAS:
        o.refuse("beta_schedule", f"expected {', '.join(_BETAS)}")
    elif name in ("squaredcos_cap_v2", "laplace"):
        schedule = _BETAS[name](count)
    else:
        schedule = _BETAS[name](count, beta_start=start, beta_end=end)
    if o.get("rescale_betas_zero_snr", False):
        schedule = schedules.zero_terminal_snr(schedule, terminal=terminal)
    clipped = o.get("lambda_min_clipped", -math.inf)
    return DiscreteSchedule(schedule.name, schedule.alphas_cumprod, clipped)


def threshold(o: Options) -> Threshold | None:
    """Dynamic thresholding of x0."""
    o.unaffecting("dynamic_thresholding_ratio", "sample_max_value")
    if not o.get("thresholding", False):
        return None
    return Threshold(o["dynamic_thresholding_ratio"], o["sample_max_value"])


def clip(o: Options) -> float | None:
    """The range of `clip_sample`, which a threshold takes the place of."""
    o.unaffecting("clip_sample", "clip_sample_range")
    if o.get("thresholding", False) or not o["clip_sample"]:
        return None
    return float(o["clip_sample_range"])


# ---- DPM-Solver, UniPC, DEIS, SA-Solver ----------------------------------------------------------------------


def multistep(o: Options, *, spaced_end: End | None = None, flow_end: End | None = None) -> LevelSchedule:
    """The levels of the multistep solvers: S evaluations, then the end point.

    Args:
        spaced_end, flow_end: where spaced and flow sigmas end; None: where `final_sigmas_type` says.
    """
    base = discrete(o, terminal=SMALLEST_HALF)
    final: End = o.get("final_sigmas_type", "sigma_min")
    steps, mu = o.steps, o.call("mu")
    shift = math.exp(mu) if mu is not None else o.get("flow_shift", 1.0)
    o.unaffecting("use_dynamic_shifting", "time_shift_type", "flow_shift")
    place = Placement(o.get("timestep_spacing", "linspace"), o.get("steps_offset", 0), endpoint=False)
    lowest = base.level(0)

    schedule: Schedule = base
    spaced = spacing(o, base)
    if spaced is not None:
        schedule, final, steps = spaced, spaced_end or final, _count(o, steps)
    elif o.get("use_flow_sigmas", False):
        schedule = schedules.flow(shift, num_train_timesteps=base.num_train_timesteps)
        final, steps, place = flow_end or final, _count(o, steps), Placement(endpoint=False)
        # Trap: the end "sigma_min" is that of the training betas, which a flow does not have.
        lowest = 1 - level_ratio(*lowest), level_ratio(*lowest)
    grid = schedule.grid(steps, place)
    return _ended(schedule.solver_times(grid.times), grid.alphas[:-1], grid.sigmas[:-1], final, lowest)


def spacing(o: Options, base: DiscreteSchedule) -> SigmaSchedule | None:
    """The spacing in sigma that one of the flags asks for."""
    chosen = [flag for flag in _SPACED if o.get(flag, False)]
    o.unaffecting("sigma_min", "sigma_max")
    if not chosen:
        return None
    limits = o.get("sigma_min", None), o.get("sigma_max", None)
    make = {
        "use_karras_sigmas": schedules.karras,
        "use_exponential_sigmas": schedules.exponential,
        "use_beta_sigmas": schedules.beta,
        "use_lu_lambdas": schedules.lu,
    }[chosen[0]]
    return make(*limits, base=base)


def _count(o: Options, steps: Steps) -> int:
    if not isinstance(steps, int):
        o.refuse("timesteps", "its sigmas are chosen by their own rule")
    assert isinstance(steps, int)
    return steps


def _ended(
    times: Sequence[float], alphas: Sequence[float], sigmas: Sequence[float], end: End, lowest: Level
) -> LevelSchedule:
    ends: Mapping[End, Level] = {
        "zero": (1.0, 0.0),
        "sigma_min": lowest,
        "last": (alphas[-1], sigmas[-1]),
    }
    alpha, sigma = ends[end]
    return schedules.from_levels(times, (*alphas, alpha), (*sigmas, sigma))


# ---- Euler, Heun, KDPM2, LMS: the sample is x0 + sigma eps ---------------------------------------------------


def sigma_space(o: Options, *, rounded: bool = False) -> tuple[LevelSchedule, float]:
    """The levels of the schedulers whose sample is x0 + sigma eps, and `init_noise_sigma` in our variable.

    Args:
        rounded: Karras timesteps are rounded to integers.
    """
    base = discrete(o, terminal=SMALLEST_HALF)
    place = Placement(o["timestep_spacing"], o["steps_offset"], rounded=False)
    sigmas = o.call("sigmas")
    if sigmas is not None:
        *ratios, last = map(float, sigmas)
        times = [base.time(r) for r in ratios]
    else:
        times = list(base.grid(o.steps, place).times)
        ratios, last = [level_ratio(*base.level(t)) for t in times], 0.0
        if o.get("interpolation_type", "linear") == "log_linear":
            low, high = (level_ratio(*base.level(t)) for t in (0, base.num_train_timesteps - 1))
            logs = ramp(math.log(high), math.log(low), len(times) + 1)
            *ratios, last = map(math.exp, logs)
        limits = o.get("sigma_min", None) or ratios[-1], o.get("sigma_max", None) or ratios[0]
        o.unaffecting("sigma_min", "sigma_max")
        spaced = _respaced(o, limits)
        if spaced is not None:
            ratios = [spaced.ratio(k / max(len(times) - 1, 1)) for k in range(len(times))]
            times, last = [base.time(r) for r in ratios], 0.0
            if rounded and o.get("use_karras_sigmas", False):
                times = [float(round(t)) for t in times]
        if o.get("final_sigmas_type", "zero") == "sigma_min" and last == 0:
            last = level_ratio(*base.level(0))
    if o.get("timestep_type", "discrete") == "continuous" and o["prediction_type"] == "v_prediction":
        times = [math.log(r) / 4 for r in ratios]
    levels = [vp_level(r) for r in (*ratios, last)]
    first = levels[0][1] if o["timestep_spacing"] in ("linspace", "trailing") else 1.0
    return schedules.from_levels(times, *zip(*levels, strict=True)), first


def _respaced(o: Options, limits: tuple[float, float]) -> SigmaSchedule | None:
    """A spacing between the levels that the timesteps have already chosen."""
    if limits[0] == limits[1]:
        o.unaffecting(*_SPACED)
        return None
    makers = (schedules.karras, schedules.exponential, schedules.beta)
    made = [make(*limits) for flag, make in zip(_SPACED, makers, strict=False) if o.get(flag, False)]
    return made[0] if made else None
