# SPDX-License-Identifier: Apache-2.0
"""Trajectory consistency distillation."""

from __future__ import annotations

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("TCDScheduler", keywords=("timesteps", "original_inference_steps", "strength", "eta"))
def tcd(o: Options) -> Plan:
    """Strategic stochastic sampling."""
    o.unaffecting("set_alpha_to_one", "steps_offset", "timestep_spacing")
    # Trap: it has these options, and its step does not look at them.
    o.unaffecting("clip_sample", "clip_sample_range")
    o.unaffecting("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    steps, original, own = o.steps, o.call("original_inference_steps"), o["original_inference_steps"]
    if original is not None and isinstance(steps, int) and steps > original:
        o.refuse("original_inference_steps", f"it is fewer than {steps} steps")
    return planners.tcd(
        _schedules.discrete(o),
        steps,
        prediction=o.require("prediction_type", "epsilon", "sample", "v_prediction"),
        eta=o.call("eta", 0.3),
        original_inference_steps=own if original is None else None,
        strength=o.call("strength", 1.0),
    )
