# SPDX-License-Identifier: Apache-2.0
"""The DPM-Solver schedulers, all four algorithm types."""

from __future__ import annotations

from typing import Any

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("DPMSolverMultistepScheduler", keywords=("timesteps", "mu"))
def multistep(o: Options) -> Plan:
    """Orders 1 to 3, midpoint and heun, ODE and SDE."""
    return _plan(o, euler_at_final=o["euler_at_final"])


@reproduces("DPMSolverSinglestepScheduler", keywords=("timesteps", "mu"))
def singlestep(o: Options) -> Plan:
    """Blocks of 1 to 3 evaluations."""
    return _plan(o, method="singlestep")


def _plan(o: Options, **options: Any) -> Plan:
    algorithm = o.require("algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
    o.require("variance_type", None)
    schedule = _schedules.multistep(o)
    lower = o["lower_order_final"]
    if options.get("method") == "singlestep":
        # It turns the option on by itself where it cannot do without.
        lower = lower or schedule.steps % o["solver_order"] != 0 or schedule.levels.sigmas[-1] == 0
    make = planners.dpm_solver_pp if algorithm.endswith("++") else planners.dpm_solver
    return make(
        schedule,
        schedule.steps,
        prediction=o["prediction_type"],
        order=o["solver_order"],
        solver_type=o.require("solver_type", "midpoint", "heun"),
        sde=algorithm.startswith("sde"),
        lower_order_final=lower,
        threshold=_schedules.threshold(o),
        **options,
    )
