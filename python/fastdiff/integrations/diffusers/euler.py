# SPDX-License-Identifier: Apache-2.0
"""The Euler schedulers whose sample is x0 + sigma eps."""

from __future__ import annotations

import dataclasses
import math
from typing import TypedDict

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan

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
    schedule = _schedules.edm_levels(o)
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
