# SPDX-License-Identifier: Apache-2.0
"""The DPM2 schedulers of k-diffusion."""

from __future__ import annotations

import dataclasses

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("KDPM2DiscreteScheduler")
def kdpm2(o: Options) -> Plan:
    """Deterministic."""
    return _plan(o, eta=0.0)


@reproduces("KDPM2AncestralDiscreteScheduler")
def kdpm2_ancestral(o: Options) -> Plan:
    """eta = 1."""
    return _plan(o, eta=1.0)


def _plan(o: Options, *, eta: float) -> Plan:
    prediction = o.require("prediction_type", "epsilon", "v_prediction")
    schedule, init = _schedules.sigma_space(o, rounded=True)
    plan = planners.kdpm2(schedule, schedule.steps, prediction=prediction, eta=eta)
    return dataclasses.replace(plan, init_noise_sigma=init)
