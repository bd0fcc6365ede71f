# SPDX-License-Identifier: Apache-2.0
"""The DDIM schedulers, forwards and backwards."""

from __future__ import annotations

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("DDIMScheduler", "DDIMParallelScheduler", keywords=("eta", "use_clipped_model_output"))
def ddim(o: Options) -> Plan:
    """Any eta; x0 clipped or thresholded.

    Trap: "trailing" timesteps have a surplus one, -1, for some numbers of steps (61, 103, 121, ...), with which the
    run ends in the alphas_cumprod of the noisiest level. It is left out here, as for DDPM and the inversion.
    """
    return planners.ddim(
        _schedules.discrete(o),
        o.steps,
        prediction=o["prediction_type"],
        eta=o.call("eta", 0.0),
        timestep_spacing=o["timestep_spacing"],
        steps_offset=o["steps_offset"],
        set_alpha_to_one=o["set_alpha_to_one"],
        clip_sample=_schedules.clip(o),
        threshold=_schedules.threshold(o),
        use_clipped_model_output=o.call("use_clipped_model_output", False),
    )


@reproduces("CogVideoXDDIMScheduler", keywords=("eta", "use_clipped_model_output"))
def cogvideox(o: Options) -> Plan:
    """eta = 0 on a shifted schedule.

    Trap: `clip_sample` is not applied, and `step` ignores eta and use_clipped_model_output; they are refused here.
    """
    o.unaffecting("clip_sample", "clip_sample_range", "sample_max_value")
    return planners.ddim(
        _schedules.snr_shifted(o),
        o.steps,
        prediction=o["prediction_type"],
        timestep_spacing=o["timestep_spacing"],
        steps_offset=o["steps_offset"],
        set_alpha_to_one=o["set_alpha_to_one"],
    )


@reproduces("DDIMInverseScheduler")
def inversion(o: Options) -> Plan:
    """From data to noise.

    Trap: its deprecated argument `set_alpha_to_zero` takes the place of `set_alpha_to_one` and is not in the config.
    """
    o.unaffecting("set_alpha_to_one")
    return planners.ddim_inversion(
        _schedules.discrete(o),
        o.steps,
        prediction=o["prediction_type"],
        timestep_spacing=o.require("timestep_spacing", "leading", "trailing"),
        steps_offset=o["steps_offset"],
        set_alpha_to_one=float(o.scheduler.initial_alpha_cumprod) == 1,
        clip_sample=_schedules.clip(o),
    )
