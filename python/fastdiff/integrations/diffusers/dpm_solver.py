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
    """Orders 1 to 3, midpoint and heun, ODE and SDE.

    Trap: spaced sigmas with final_sigmas_type="sigma_min" end with an empty step, for which order 3 and heun of
    diffusers divide 0 by 0; here it copies x.
    """
    if o["algorithm_type"] == "sde-dpmsolver" and o["solver_order"] == 3:
        o.refuse("solver_order", "sde-dpmsolver has no third order")
    return _plan(o, euler_at_final=o["euler_at_final"])


@reproduces("DPMSolverSinglestepScheduler", keywords=("timesteps", "mu"))
def singlestep(o: Options) -> Plan:
    """Blocks of 1 to 3 evaluations."""
    if o["algorithm_type"] == "dpmsolver" and o["thresholding"]:
        o.refuse("thresholding", "with dpmsolver it reads the levels of all timesteps at once")
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
