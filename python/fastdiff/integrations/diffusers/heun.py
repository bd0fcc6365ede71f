# SPDX-License-Identifier: Apache-2.0
"""The Heun schedulers, for the diffusion ODE and for flow matching."""

from __future__ import annotations

import dataclasses
import math

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("HeunDiscreteScheduler", keywords=("timesteps",))
def heun(o: Options) -> Plan:
    """Two evaluations per step, without churn."""
    schedule, init = _schedules.sigma_space(o)
    plan = planners.heun(
        schedule, schedule.steps, prediction=o["prediction_type"], clip_sample=_schedules.clip(o)
    )
    return dataclasses.replace(plan, init_noise_sigma=init)


@reproduces("FlowMatchHeunDiscreteScheduler", keywords=("s_churn", "s_tmin", "s_tmax", "s_noise"))
def flow_heun(o: Options) -> Plan:
    """Its static shift and its own kind of churn."""
    schedule = schedules.flow(o["shift"], num_train_timesteps=o["num_train_timesteps"])
    return planners.heun(
        schedule,
        o.steps,
        s_churn=o.call("s_churn", 0.0),
        s_tmin=o.call("s_tmin", 0.0),
        s_tmax=o.call("s_tmax", math.inf),
        s_noise=o.call("s_noise", 1.0),
    )
