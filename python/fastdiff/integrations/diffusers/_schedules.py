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
    "exp": lambda count: schedules.from_betas([-math.expm1(-12 / count)] * count, name="exp"),
}
_SPACED: dict[str, Callable[..., SigmaSchedule]] = {
    "use_karras_sigmas": schedules.karras,
    "use_exponential_sigmas": schedules.exponential,
    "use_beta_sigmas": schedules.beta,
    "use_lu_lambdas": schedules.lu,
}
SMALLEST_HALF = 2.0**-24  # what the solvers put in the place of a terminal alphas_cumprod of 0


# ---- options that most classes share -------------------------------------------------------------------------


def trained(o: Options) -> DiscreteSchedule:
    """The schedule of the betas."""
    betas, name, count = o["trained_betas"], o["beta_schedule"], o["num_train_timesteps"]
    start, end = o["beta_start"], o["beta_end"]
    if betas is not None:
        if len(betas) != count:
            o.refuse("num_train_timesteps", f"there are {len(betas)} trained_betas")
        return schedules.from_betas(betas)
    if name not in _BETAS:
        o.refuse("beta_schedule", f"expected {', '.join(_BETAS)}")
    if name in ("squaredcos_cap_v2", "laplace", "exp"):
        return _BETAS[name](count)
    return _BETAS[name](count, beta_start=start, beta_end=end)


def discrete(o: Options, *, terminal: float = 0.0) -> DiscreteSchedule:
    """The training schedule.

    Args:
        terminal: alphas_cumprod of the last timestep under `rescale_betas_zero_snr`.
    """
    schedule = trained(o)
    if o.get("rescale_betas_zero_snr", False):
        schedule = schedules.zero_terminal_snr(schedule, terminal=terminal)
    clipped = o.get("lambda_min_clipped", -math.inf)
    return DiscreteSchedule(schedule.name, schedule.alphas_cumprod, clipped)


def snr_shifted(o: Options) -> DiscreteSchedule:
    """The SNR divided by `snr_shift_scale`, then the rescaling to zero terminal SNR (CogVideoX, section 3.3)."""
    ab, scale = trained(o).alphas_cumprod, o["snr_shift_scale"]
    schedule = schedules.from_alphas_cumprod(ab / (scale + (1 - scale) * ab))
    return schedules.zero_terminal_snr(schedule) if o["rescale_betas_zero_snr"] else schedule


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


def prediction(o: Options) -> str:
    """What the model predicts, where the scheduler's conversion holds on its path."""
    name, flow = str(o["prediction_type"]), o.get("use_flow_sigmas", False)
    if name == "flow_prediction" and not flow:
        o.refuse("prediction_type", "without use_flow_sigmas it takes sigma/alpha for sigma")
    if name == "v_prediction" and flow:
        o.refuse("prediction_type", "its x0 = alpha x - sigma v does not hold on the path of use_flow_sigmas")
    return name


def multistep(
    o: Options, *, spaced_end: End | None = None, flow_end: End | None = None, rounds: bool = False
) -> LevelSchedule:
    """The levels of the multistep solvers: S evaluations, then the end point.

    Args:
        spaced_end, flow_end: where spaced and flow sigmas end; None: where `final_sigmas_type` says.
        rounds: Karras timesteps are rounded on the cosine schedule too.
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
    times = schedule.solver_times(grid.times)
    if rounds and o.get("use_karras_sigmas", False):
        times = tuple(float(round(t)) for t in grid.times)
    return _ended(times, grid.alphas[:-1], grid.sigmas[:-1], final, lowest)


def spacing(o: Options, base: DiscreteSchedule) -> SigmaSchedule | None:
    """The spacing in sigma that one of the flags asks for."""
    chosen = [flag for flag in _SPACED if o.get(flag, False)]
    o.unaffecting("sigma_min", "sigma_max")
    if not chosen:
        return None
    limits = o.get("sigma_min", None), o.get("sigma_max", None)
    return _SPACED[chosen[0]](*limits, base=base)


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

    Trap: `interpolation_type="log_linear"` chooses one level more than there are timesteps, and appends the end to
    that: the run ends one level early, at the lowest training level whatever `final_sigmas_type` says.

    Args:
        rounded: Karras timesteps are rounded to integers.
    """
    base = discrete(o, terminal=SMALLEST_HALF)
    custom = o.call("sigmas")
    times, ratios = _chosen(o, base, rounded) if custom is None else _given(o, base, custom)
    if is_continuous(o):
        times = [math.log(r) / 4 for r in ratios[:-1]]
    ratios = ratios[: len(times) + 1]
    if ratios[-1] > ratios[-2]:
        o.refuse(
            "final_sigmas_type", f"the lowest training level lies above the last sigma, {ratios[-2]:.4g}"
        )
    levels = [vp_level(r) for r in ratios]
    # Trap: the noise of "leading" timesteps is that of x0 + sigma eps for data of variance 1, of the others sigma's.
    first = levels[0][1] if o["timestep_spacing"] in ("linspace", "trailing") else 1.0
    return schedules.from_levels(times, *zip(*levels, strict=True), base=base), first


def is_continuous(o: Options) -> bool:
    """Whether the model is told ln(sigma)/4."""
    return bool(o.get("timestep_type", "discrete") == "continuous" and o["prediction_type"] == "v_prediction")


def is_spaced(o: Options) -> bool:
    """Whether sigmas are spaced between the ends of those that the timesteps choose."""
    chosen = [flag for flag in _SPACED if o.get(flag, False)]
    return bool(chosen)


def _given(o: Options, base: DiscreteSchedule, sigmas: Sequence[float]) -> tuple[list[float], list[float]]:
    """Times and ratios of the caller's own list, end point included."""
    if o.num_inference_steps is not None or o.call("timesteps") is not None:
        o.refuse("sigmas", "pass it without num_inference_steps and timesteps")
    o.unaffecting(
        *_SPACED, "sigma_min", "sigma_max", "interpolation_type", "final_sigmas_type", "steps_offset"
    )
    ratios = [float(s) for s in sigmas]
    return [base.time(r) for r in ratios[:-1]], ratios


def _chosen(o: Options, base: DiscreteSchedule, rounded: bool) -> tuple[list[float], list[float]]:
    """Times and ratios by the scheduler's own rules, end point included."""
    place = Placement(o["timestep_spacing"], o["steps_offset"], rounded=False)
    times = list(base.grid(o.steps, place).times)
    ratios = [level_ratio(*base.level(t)) for t in times]
    if o.require("interpolation_type", "linear", "log_linear") == "log_linear":
        low, high = (level_ratio(*base.level(t)) for t in (0, base.num_train_timesteps - 1))
        ratios = [math.exp(log) for log in ramp(math.log(high), math.log(low), len(times) + 1)]
    if o.call("timesteps") is not None and (is_spaced(o) or is_continuous(o)):
        o.refuse("timesteps", "its sigmas are chosen by their own rule")
    if is_spaced(o):
        ratios = respaced(o, ratios[0], ratios[-1], len(times))
        times = [base.time(r) for r in ratios]
        if rounded and o.get("use_karras_sigmas", False):
            times = [float(round(t)) for t in times]
    o.unaffecting("sigma_min", "sigma_max")
    final = o.require("final_sigmas_type", "zero", "sigma_min")
    return times, [*ratios, 0.0 if final == "zero" else level_ratio(*base.level(0))]


def respaced(o: Options, high: float, low: float, count: int) -> list[float]:
    """So many sigmas from high to low, unless the options say from where to where, spaced as the flag asks."""
    high, low = (
        end if o.get(option, None) is None else float(o[option])
        for option, end in (("sigma_max", high), ("sigma_min", low))
    )
    if high == low:
        return [high] * count
    spaced = next(make for flag, make in _SPACED.items() if o.get(flag, False))(low, high)
    return [spaced.ratio(k / max(count - 1, 1)) for k in range(count)]


# ---- EDM ----------------------------------------------------------------------------------------------------


def edm_levels(o: Options, *, ends_at_last: bool = True) -> LevelSchedule:
    """The levels between sigma_max and sigma_min, or at the caller's positions.

    Args:
        ends_at_last: final_sigmas_type = "sigma_min" means the last of these levels, not the option sigma_min.

    Trap: under "exponential" only the number of the positions matters, and a single step starts at sigma_min.
    """
    exponential = o.require("sigma_schedule", "karras", "exponential") == "exponential"
    rho = math.inf if exponential else o["rho"]
    spacing = schedules.edm(o["sigma_min"], o["sigma_max"], rho, sigma_data=o["sigma_data"])
    o.unaffecting("num_train_timesteps", "rho")
    positions = o.call("sigmas")
    if positions is not None and o.num_inference_steps is not None:
        o.refuse("sigmas", "pass it without num_inference_steps")
    if positions is None or exponential:
        count = o.steps if positions is None else len(positions)
        assert isinstance(count, int)
        positions = ramp(1.0 if exponential and count == 1 else 0.0, 1.0, count)
    ratios = [spacing.ratio(float(p)) for p in positions]
    lowest = ratios[-1] if ends_at_last else float(o["sigma_min"])
    last = 0.0 if o.require("final_sigmas_type", "zero", "sigma_min") == "zero" else lowest
    times, levels = zip(*map(spacing.at, ratios), strict=True)
    alphas, sigmas = zip(*levels, strict=True)
    return schedules.from_levels(times, (*alphas, 1.0), (*sigmas, last), base=spacing)
