# SPDX-License-Identifier: Apache-2.0
"""The Euler schedulers for flow matching."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules import FlowSchedule, LevelSchedule, Steps

_SET_TIMESTEPS = ("timesteps", "sigmas", "mu")
_TO_FIND_MU = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")


@reproduces("FlowMatchEulerDiscreteScheduler", keywords=_SET_TIMESTEPS)
def flow_match_euler(o: Options) -> Plan:
    """Its churn keywords do nothing. `per_token_timesteps` is `planners.euler_per_token`."""
    return _euler(o, stochastic=o["stochastic_sampling"])


@reproduces("FlowMatchLCMScheduler", keywords=_SET_TIMESTEPS)
def flow_match_lcm(o: Options) -> Plan:
    """`stochastic_sampling`, without latents that grow from step to step."""
    factors = o["scale_factors"] or getattr(o.scheduler, "_scale_factors", None)
    if factors:
        o.refuse("scale_factors", f"latents that change size by {factors} are no linear step")
    o.unaffecting("upscale_mode")
    return _euler(o, stochastic=True)


@reproduces("LTXEulerAncestralRFScheduler", keywords=_SET_TIMESTEPS)
def ltx_euler_ancestral(o: Options) -> Plan:
    """Ancestral steps on the levels of `FlowMatchEulerDiscreteScheduler`, or on given ones.

    Trap: of given sigmas it makes one timestep too many, whose evaluation changes nothing. The plan leaves it out.
    """
    eta, s_noise = o["eta"], o["s_noise"]
    if eta > 0 and s_noise == 0:
        o.refuse("s_noise", "without noise it skips the rescaling that belongs to its step down")
    sigmas, total = o.call("sigmas", o.call("timesteps")), o["num_train_timesteps"]
    if sigmas is None:
        schedule = _levels(o)
    else:
        ends = [float(s) for s in sigmas]
        schedule = schedules.from_levels([s * total for s in ends[:-1]], [1 - s for s in ends], ends)
    return planners.euler_ancestral(
        schedule,
        schedule.steps,
        prediction="flow",
        eta=eta,
        s_noise=s_noise,
        rectified_flow=True,
    )


def _euler(o: Options, *, stochastic: bool) -> Plan:
    inverted = o.require("invert_sigmas", False, True)
    if inverted and stochastic:
        o.refuse("invert_sigmas", "stochastic sampling takes its noise for the data and returns noise")
    schedule = _levels(o)
    plan = planners.euler(
        schedule,
        schedule.steps,
        prediction="reverse_flow" if inverted else "flow",
        stochastic_sampling=stochastic,
    )
    return dataclasses.replace(plan, init_noise_sigma=1.0)


def _levels(o: Options) -> LevelSchedule:
    """sigma = 1 to 0, in the order of `set_timesteps`: shift, stretch, space, invert.

    Traps: the static shift moves the ends of the range and then the range itself, so that sigma_min is shifted twice.
    Given sigmas are shifted as well. Given timesteps are what the model is told, while their sigmas are shifted.
    """
    flow = _flow(o)
    told = o.call("timesteps")
    ratios = list(flow.grid(_steps(o, flow.num_train_timesteps)).sigmas[:-1])
    if _schedules.is_spaced(o):
        ratios = _schedules.respaced(o, ratios[0], ratios[-1], len(ratios))
    times = _told(o, [s * flow.num_train_timesteps for s in ratios], told)
    ends = [*ratios, 0.0]
    return schedules.from_levels(times, [1 - s for s in ends], ends, base=flow)


def _steps(o: Options, total: int) -> Steps:
    """How many, or T sigma before the shift, of which the caller may give as many as there are steps."""
    count, sigmas, told = o.num_inference_steps, o.call("sigmas"), o.call("timesteps")
    if sigmas is None and told is None:
        return o.steps
    given = [float(t) for t in told] if sigmas is None else [float(s) * total for s in sigmas]
    for name, values in (("sigmas", sigmas), ("timesteps", told)):
        if values is not None and len(values) != (count or len(given)):
            o.refuse(name, f"expected {count or len(given)} of them")
    return given


def _told(o: Options, times: Sequence[float], told: Sequence[float] | None) -> list[float]:
    """What the model is told: `invert_sigmas` tells it T (1 - sigma), whatever timesteps were given."""
    if o.get("invert_sigmas", False):
        total = float(o["num_train_timesteps"])
        return [total - t for t in times]
    return list(times) if told is None else [float(t) for t in told]


def _flow(o: Options) -> FlowSchedule:
    dynamic = o.get("use_dynamic_shifting", False)
    mu = o.call("mu") if dynamic else None
    if dynamic and mu is None:
        o.refuse("use_dynamic_shifting", "pass mu")
    shift = float(o.get("shift", 1.0))
    if getattr(o.scheduler, "shift", shift) != shift:
        o.refuse("shift", f"set_shift has changed it to {o.scheduler.shift}; set it in the config")
    kind = o.get("time_shift_type", "exponential")
    terminal = o.get("shift_terminal", None)
    o.unaffecting(*_TO_FIND_MU)
    return schedules.flow(
        shift,
        mu=mu,
        time_shift_type=kind,
        shift_terminal=terminal or None,
        num_train_timesteps=o["num_train_timesteps"],
    )
