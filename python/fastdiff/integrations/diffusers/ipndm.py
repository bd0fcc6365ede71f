# SPDX-License-Identifier: Apache-2.0
"""IPNDMScheduler."""

from __future__ import annotations

import math

from fastdiff import planners, schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan


@reproduces("IPNDMScheduler")
def ipndm(o: Options) -> Plan:
    """Order 4 with prediction v, on sigma = sin^2(pi t/2), t from 1 to 0 in equal steps, alpha = sqrt(1 - sigma^2).

    The model is told (2/pi) atan2(sigma, alpha).

    Trap: its `trained_betas` are the sigmas themselves, the last one being the end point, for whatever number of steps.
    """
    o.unaffecting("num_train_timesteps")
    given, steps = o["trained_betas"], o.steps
    assert isinstance(steps, int)  # timesteps is no keyword here
    if given is None:
        sigmas = [math.sin(math.pi / 2 * (1 - k / steps)) ** 2 for k in range(steps + 1)]
    else:
        sigmas = [float(beta) for beta in given]
        if len(sigmas) != steps + 1:
            o.refuse("trained_betas", f"these are the levels of {len(sigmas) - 1} steps, not of {steps}")
        if not all(0 <= sigma <= 1 for sigma in sigmas):
            o.refuse("trained_betas", "they are taken for sigma, in [0, 1]")
    alphas = [math.sqrt((1 - sigma) * (1 + sigma)) for sigma in sigmas]
    times = [2 / math.pi * math.atan2(s, a) for s, a in zip(sigmas[:-1], alphas, strict=False)]
    return planners.ipndm(schedules.from_levels(times, alphas, sigmas), steps, prediction="v")
