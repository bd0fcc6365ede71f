# SPDX-License-Identifier: Apache-2.0
"""UniPCMultistepScheduler."""

from __future__ import annotations

import math

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan
from fastdiff.schedules import LevelSchedule
from fastdiff.schedules._grid import ramp

_BELOW_ONE = 1e-6  # how far diffusers moves a first flow sigma of 1, where alpha would be 0
_TRAINING = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


@reproduces("UniPCMultistepScheduler", keywords=("sigmas", "mu"))
def multistep(o: Options) -> Plan:
    """Both forms and both B(h); shifted, stretched and given flow sigmas."""
    if o["solver_p"] is not None:
        o.refuse("solver_p", "its predictor is another scheduler")
    data, prediction = o["predict_x0"], _schedules.prediction(o)
    if not data and prediction == "flow_prediction":
        o.refuse("prediction_type", "predict_x0=False cannot convert it")
    schedule = _levels(o)
    threshold = _schedules.threshold(o)
    return planners.unipc(
        schedule,
        schedule.steps,
        prediction=prediction,
        order=o["solver_order"],
        solver_type=o.require("solver_type", "bh1", "bh2"),
        predict_x0=data,
        disable_corrector=o["disable_corrector"],
        lower_order_final=o["lower_order_final"],
        threshold=threshold if data else None,  # which its noise form ignores
    )


def _levels(o: Options) -> LevelSchedule:
    flow, dynamic = o["use_flow_sigmas"], o["use_dynamic_shifting"]
    mu = o.call("mu") if dynamic else None
    if dynamic and mu is None:
        o.refuse("use_dynamic_shifting", "pass mu")
    o.unaffecting("flow_shift", "time_shift_type", "shift_terminal")
    if not flow:
        if o.call("sigmas") is not None:
            o.refuse("sigmas", "it takes them with use_flow_sigmas only")
        return _schedules.multistep(o, spaced_end=_end(o), rounds=True)
    for spaced in ("use_exponential_sigmas", "use_beta_sigmas"):
        if o[spaced]:
            o.refuse(spaced, "with use_flow_sigmas its sigmas above 1 have no alpha = 1 - sigma")
    o.unaffecting("timestep_spacing", "steps_offset")
    sigmas = _karras(o) if o["use_karras_sigmas"] else _shifted(o, mu)
    last = 0.0 if o["final_sigmas_type"] == "zero" else sigmas[-1]
    times = [float(math.trunc(s * o["num_train_timesteps"])) for s in sigmas]
    ends = [*sigmas, last]
    return schedules.from_levels(times, [1 - s for s in ends], ends)


def _end(o: Options) -> _schedules.End:
    """Trap: "sigma_min" is the last of spaced sigmas once more, so that the last step goes nowhere."""
    return "last" if o["final_sigmas_type"] == "sigma_min" else "zero"


def _shifted(o: Options, mu: float | None) -> list[float]:
    """The flow sigmas, from 1 downwards or given, shifted and stretched."""
    count, sigmas = o["num_train_timesteps"], o.call("sigmas")
    if sigmas is None:
        steps = o.steps
        assert isinstance(steps, int)  # timesteps is no keyword here
        sigmas = ramp(1.0, 1 / count, steps + 1)[:-1]
    o.unaffecting(*_TRAINING, "sigma_min", "sigma_max")
    path = schedules.flow(
        o["flow_shift"],
        mu=mu,
        time_shift_type=o["time_shift_type"],
        shift_terminal=o["shift_terminal"] or None,
        num_train_timesteps=count,
    )
    first, *rest = path.grid([count * float(s) for s in sigmas]).sigmas[:-1]
    return [1 - _BELOW_ONE if abs(first - 1) < _BELOW_ONE else first, *rest]


def _karras(o: Options) -> list[float]:
    """Karras' spacing of the training schedule's sigma/alpha, on the straight path; not shifted."""
    steps = o.steps
    assert isinstance(steps, int)
    spaced = _schedules.spacing(o, _schedules.discrete(o, terminal=_schedules.SMALLEST_HALF))
    assert spaced is not None
    ratios = [spaced.ratio(k / max(steps - 1, 1)) for k in range(steps)]
    return [r / (1 + r) for r in ratios]
