# SPDX-License-Identifier: Apache-2.0
"""The DPM-Solver++ schedulers of networks with EDM's preconditioning; their sample is x0 + sigma eps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules import LevelSchedule


@reproduces("EDMDPMSolverMultistepScheduler")
def edm(o: Options) -> Plan:
    """Orders 1 to 3, ODE and SDE."""
    sde = o.require("algorithm_type", "dpmsolver++", "sde-dpmsolver++") == "sde-dpmsolver++"
    if sde and o["solver_order"] == 3:
        o.refuse("solver_order", "sde-dpmsolver++ has no third order here")
    levels = _schedules.edm_levels(o, ends_at_last=False)
    return _plan(o, levels, sde=sde, threshold=_schedules.threshold(o))


@reproduces("CosineDPMSolverMultistepScheduler")
def cosine(o: Options) -> Plan:
    """SDE-DPM-Solver++; the model is told 2/pi atan(sigma).

    Its noise is the increments of a Brownian path over disjoint intervals, which are independent: any z will do.
    """
    o.require("solver_order", 2, 1)
    levels = _schedules.edm_levels(o, ends_at_last=False).levels
    ratios = [s / a for a, s in zip(levels.alphas, levels.sigmas, strict=True)]
    times = [2 / math.pi * math.atan(r) for r in ratios[:-1]]
    return _plan(o, schedules.from_levels(times, levels.alphas, levels.sigmas), sde=True)


def _plan(o: Options, schedule: LevelSchedule, **options: Any) -> Plan:
    prediction = {"epsilon": "edm", "v_prediction": "edm_v"}[
        o.require("prediction_type", "epsilon", "v_prediction")
    ]
    plan = planners.dpm_solver_pp(
        schedule,
        schedule.steps,
        prediction=prediction,
        order=o["solver_order"],
        solver_type=o.require("solver_type", "midpoint", "heun"),
        lower_order_final=o["lower_order_final"],
        euler_at_final=o["euler_at_final"],
        **options,
    )
    return dataclasses.replace(plan, init_noise_sigma=float(plan.alphas[0]) * math.hypot(o["sigma_max"], 1))
