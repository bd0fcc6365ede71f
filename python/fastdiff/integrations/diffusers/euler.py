# SPDX-License-Identifier: Apache-2.0
"""The Euler schedulers whose sample is x0 + sigma eps."""

from __future__ import annotations

import dataclasses
import math
from typing import TypedDict

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules import LevelSchedule
from fastdiff.schedules._grid import ramp

_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


@reproduces("EulerDiscreteScheduler", keywords=("timesteps", "sigmas", *_CHURN))
def euler(o: Options) -> Plan:
    """All spacings and interpolations; churn as keywords, where s_churn = 0 makes the others of no effect."""
    prediction = o["prediction_type"]
    schedule, init = _schedules.sigma_space(o)
    plan = planners.euler(
        schedule,
        schedule.steps,
        prediction="x0" if prediction == "original_sample" else prediction,
        **_churn(o, schedule.steps, _intervals(o, schedule.steps)),
    )
    return dataclasses.replace(plan, init_noise_sigma=init)


@reproduces("EulerAncestralDiscreteScheduler")
def euler_ancestral(o: Options) -> Plan:
    """eta = 1."""
    schedule, init = _schedules.sigma_space(o)
    o.require("prediction_type", "epsilon", "v_prediction")
    plan = planners.euler_ancestral(schedule, schedule.steps, prediction=o["prediction_type"])
    return dataclasses.replace(plan, init_noise_sigma=init)


@reproduces("EDMEulerScheduler", keywords=("sigmas", *_CHURN))
def edm_euler(o: Options) -> Plan:
    """EDM's preconditioning; `sigmas` are positions in [0, 1] on the schedule, as its `set_timesteps` takes them."""
    schedule = _edm_levels(o)
    plan = planners.euler(
        schedule,
        schedule.steps,
        prediction={"epsilon": "edm", "v_prediction": "edm_v"}[
            o.require("prediction_type", "epsilon", "v_prediction")
        ],
        **_churn(o, schedule.steps, schedule.steps),
    )
    alpha = float(plan.alphas[0])
    return dataclasses.replace(plan, init_noise_sigma=alpha * math.hypot(o["sigma_max"], 1))


def _edm_levels(o: Options) -> LevelSchedule:
    """The levels between sigma_max and sigma_min, or at the caller's positions.

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
    last = 0.0 if o.require("final_sigmas_type", "zero", "sigma_min") == "zero" else ratios[-1]
    times, levels = zip(*map(spacing.at, ratios), strict=True)
    alphas, sigmas = zip(*levels, strict=True)
    return schedules.from_levels(times, (*alphas, 1.0), (*sigmas, last), base=spacing)


# ---- churn ---------------------------------------------------------------------------------------------------


class _Churn(TypedDict, total=False):
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float


def _churn(o: Options, steps: int, intervals: int) -> _Churn:
    """The keywords of `planners.euler`, which spreads s_churn over its own steps."""
    return {
        "s_churn": o.call("s_churn", 0.0) * steps / intervals,
        "s_tmin": o.call("s_tmin", 0.0),
        "s_tmax": o.call("s_tmax", math.inf),
        "s_noise": o.call("s_noise", 1.0),
    }


def _intervals(o: Options, steps: int) -> int:
    """How many steps s_churn is spread over. Trap: "log_linear" has one sigma too many, see `sigma_space`."""
    surplus = (
        o.get("interpolation_type", "linear") == "log_linear"
        and o.call("sigmas") is None
        and not _schedules.is_spaced(o)
        and not _schedules.is_continuous(o)
    )
    return steps + surplus
