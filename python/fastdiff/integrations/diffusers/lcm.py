# SPDX-License-Identifier: Apache-2.0
"""Latent consistency models."""

from __future__ import annotations

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("LCMScheduler", keywords=("timesteps", "original_inference_steps", "strength"))
def lcm(o: Options) -> Plan:
    """Multistep consistency sampling with noise up to the next timestep."""
    o.unaffecting("set_alpha_to_one", "steps_offset", "timestep_spacing")
    steps, strength = o.steps, o.call("strength", 1.0)
    if not isinstance(steps, int) and strength != 1:
        o.refuse(
            "strength", "with timesteps it adds noise after the last step; pass the timesteps that are left"
        )
    original = o.call("original_inference_steps", o["original_inference_steps"])
    return planners.lcm(
        _schedules.discrete(o),
        steps,
        prediction=o.require("prediction_type", "epsilon", "sample", "v_prediction"),
        original_inference_steps=original,
        strength=strength,
        timestep_scaling=o["timestep_scaling"],
        clip_sample=_schedules.clip(o),
        threshold=_schedules.threshold(o),
    )
