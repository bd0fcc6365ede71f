# SPDX-License-Identifier: Apache-2.0
"""DEISMultistepScheduler."""

from __future__ import annotations

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan

_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@reproduces("DEISMultistepScheduler", keywords=("mu",))
def multistep(o: Options) -> Plan:
    """Log-rho AB of order 1 to 3.

    Trap: spaced and flow sigmas end with their last level once more, so that the last evaluation changes nothing.
    """
    o.require("algorithm_type", "deis")
    o.require("solver_type", "logrho")
    if o.call("mu") is not None and not (o["use_dynamic_shifting"] and o["use_flow_sigmas"]):
        o.refuse("mu", "it takes it with use_dynamic_shifting, for use_flow_sigmas")
    if o["use_flow_sigmas"] and any(o[flag] for flag in _SPACED):
        o.refuse("use_flow_sigmas", "spaced sigmas above 1 have no alpha = 1 - sigma")
    schedule = _schedules.multistep(o, spaced_end="last", flow_end="last", rounds=True)
    return planners.deis(
        schedule,
        schedule.steps,
        prediction=_schedules.prediction(o),
        order=o.require("solver_order", 1, 2, 3),
        space="log_rho",
        lower_order_final=o["lower_order_final"],
        threshold=_schedules.threshold(o),
    )
