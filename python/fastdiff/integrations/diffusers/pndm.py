# SPDX-License-Identifier: Apache-2.0
"""PNDMScheduler."""

from __future__ import annotations

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("PNDMScheduler")
def pndm(o: Options) -> Plan:
    """With and without the Runge-Kutta steps."""
    return planners.pndm(
        _schedules.discrete(o),
        o.steps,
        prediction=o.require("prediction_type", "epsilon", "v_prediction"),
        skip_prk_steps=o["skip_prk_steps"],
        set_alpha_to_one=o["set_alpha_to_one"],
        timestep_spacing=o["timestep_spacing"],
        steps_offset=o["steps_offset"],
    )
