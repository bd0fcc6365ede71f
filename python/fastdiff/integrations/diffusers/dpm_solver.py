# SPDX-License-Identifier: Apache-2.0
"""The DPM-Solver schedulers, all four algorithm types."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules import LevelSchedule, Placement


@reproduces("DPMSolverMultistepScheduler", keywords=("timesteps", "mu"))
def multistep(o: Options) -> Plan:
    """Orders 1 to 3, midpoint and heun, ODE and SDE.

    Trap: spaced sigmas with final_sigmas_type="sigma_min" end with an empty step, for which order 3 and heun of
    diffusers divide 0 by 0; here it copies x.
    """
    if o["algorithm_type"] == "sde-dpmsolver" and o["solver_order"] == 3:
        o.refuse("solver_order", "sde-dpmsolver has no third order")
    return _plan(o, _schedules.multistep(o), euler_at_final=o["euler_at_final"])


@reproduces("DPMSolverSinglestepScheduler", keywords=("timesteps", "mu"))
def singlestep(o: Options) -> Plan:
    """Blocks of 1 to 3 evaluations."""
    if o["algorithm_type"] == "dpmsolver" and o["thresholding"]:
        o.refuse("thresholding", "with dpmsolver it reads the levels of all timesteps at once")
    return _plan(o, _schedules.multistep(o), method="singlestep")


@reproduces("DPMSolverMultistepInverseScheduler")
def inverse(o: Options) -> Plan:
    """From data to noise.

    Trap: where timesteps repeat it drops them, but not their levels, and so stops early.
    """
    if o["algorithm_type"].startswith("sde"):
        o.refuse("algorithm_type", "the variance of its noise is negative from data to noise")
    if o["use_flow_sigmas"]:
        o.refuse("use_flow_sigmas", "its sigmas fall, as from noise to data")
    o.unaffecting("flow_shift")
    return _plan(o, _ascending(o), euler_at_final=o["euler_at_final"])


@reproduces("CogVideoXDPMScheduler")
def cogvideox(o: Options) -> Plan:
    """SDE-DPM-Solver++ 2M at the timesteps of DDIM.

    Trap: `clip_sample` is not applied.
    """
    o.unaffecting("clip_sample", "clip_sample_range", "sample_max_value")
    steps, base = o.steps, _schedules.snr_shifted(o)
    place = Placement(o["timestep_spacing"], o["steps_offset"])
    grid = base.grid(steps, place, "zero" if o["set_alpha_to_one"] else "sigma_min")
    stride = base.num_train_timesteps // len(grid.times)
    if any(t - after != stride for t, after in pairwise(grid.times)) or grid.times[-1] >= stride:
        o.refuse("timestep_spacing", "it steps from t to t - T//S, which is not the next of these timesteps")
    return planners.dpm_solver_pp(
        schedules.from_levels(grid.times, grid.alphas, grid.sigmas),
        len(grid.times),
        prediction=o["prediction_type"],
        sde=True,
        lower_order_final=False,
        euler_at_final=True,
    )


def _ascending(o: Options) -> LevelSchedule:
    """S evaluations from the lowest level on, then the highest one."""
    base, steps = _schedules.discrete(o), o.steps
    assert isinstance(steps, int)
    spaced, spacing, offset = _schedules.spacing(o, base), o["timestep_spacing"], o["steps_offset"]
    if spaced is not None:
        grid = spaced.grid(steps)
        descending, alphas, sigmas = grid.times, grid.alphas[:-1], grid.sigmas[:-1]
        if steps == 1:
            descending, (alphas, sigmas) = (0.0,), zip(base.level(0), strict=True)
        rounds = round if o["use_karras_sigmas"] else math.trunc
        times = tuple(float(rounds(t)) for t in reversed(descending))
        levels = [*zip(reversed(alphas), reversed(sigmas), strict=True)]
        levels.append(levels[-1])
    else:
        # The end takes the place of the highest of S + 1 timesteps, except under "trailing", where it is that again.
        trailing = spacing == "trailing"
        place = Placement(spacing, offset)
        times = place.timesteps(steps + (not trailing), base.num_train_timesteps, base.usable)[::-1][:steps]
        levels = [base.level(t) for t in (*times, base.usable - 1)]
    if len(set(times)) < len(times):
        flag = "timestep_spacing" if spaced is None else f"use_{spaced.name}_sigmas"
        o.refuse(flag, f"timesteps repeat in {steps} steps, which it drops, but not their levels")
    return schedules.from_levels(times, *zip(*levels, strict=True), ascending=True)


def _plan(o: Options, schedule: LevelSchedule, **options: Any) -> Plan:
    algorithm = o.require("algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
    o.require("variance_type", None)
    lower = o["lower_order_final"]
    if options.get("method") == "singlestep":
        # It turns the option on by itself where it cannot do without.
        lower = lower or schedule.steps % o["solver_order"] != 0 or schedule.levels.sigmas[-1] == 0
    make = planners.dpm_solver_pp if algorithm.endswith("++") else planners.dpm_solver
    if make is planners.dpm_solver and o["prediction_type"] == "flow_prediction":
        o.refuse("prediction_type", "only the ++ algorithms convert it")
    return make(
        schedule,
        schedule.steps,
        prediction=_schedules.prediction(o),
        order=o["solver_order"],
        solver_type=o.require("solver_type", "midpoint", "heun"),
        sde=algorithm.startswith("sde"),
        lower_order_final=lower,
        threshold=_schedules.threshold(o),
        **options,
    )
