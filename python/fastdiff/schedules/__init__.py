# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, in float64.

Three families, one question each of them answers, `Schedule.grid`: at which levels does a solver with S steps
evaluate the model, what time does it tell the model there, and at which level does it end.

- `linear`, `scaled_linear`, `cosine`, `from_alphas_cumprod`: variance preserving (VP), a level per timestep.
- `karras`, `exponential`: levels spaced in sigma/alpha, on top of a VP `base` or alone (alpha = 1).
- `flow`: alpha = 1 - sigma, with static or dynamic shift.

Names, defaults and rounding are those of diffusers; the tables are computed from float64 betas, so they carry
about 1e-15 where diffusers' fp32 tables carry 1e-6 to 1e-5.
"""

from fastdiff.schedules._discrete import DiscreteSchedule, cosine, from_alphas_cumprod, linear, scaled_linear
from fastdiff.schedules._flow import FlowSchedule, flow
from fastdiff.schedules._grid import Final, Grid, Placement, Schedule, Spacing, Steps
from fastdiff.schedules._sigma import SigmaSchedule, exponential, karras

__all__ = [
    "DiscreteSchedule",
    "Final",
    "FlowSchedule",
    "Grid",
    "Placement",
    "Schedule",
    "SigmaSchedule",
    "Spacing",
    "Steps",
    "cosine",
    "exponential",
    "flow",
    "from_alphas_cumprod",
    "karras",
    "linear",
    "scaled_linear",
]
