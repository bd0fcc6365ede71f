# SPDX-License-Identifier: Apache-2.0
"""The linear multistep scheduler of k-diffusion."""

from __future__ import annotations

import dataclasses

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("LMSDiscreteScheduler", keywords=("order",))
def lms(o: Options) -> Plan:
    """Orders 1 to 4; 4 is the default of its `step`."""
    schedule, init = _schedules.sigma_space(o)
    plan = planners.lms(schedule, schedule.steps, prediction=o["prediction_type"], order=o.call("order", 4))
    return dataclasses.replace(plan, init_noise_sigma=init)
