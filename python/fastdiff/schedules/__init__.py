# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, in float64.

Four families, one question each of them answers, `Schedule.grid`: at which levels does a solver with S steps
evaluate the model, what time does it tell the model there, and at which level does it end.

- `linear`, `scaled_linear`, `cosine`, `sigmoid`, `laplace`, `from_betas`, `from_alphas_cumprod`: variance preserving
  (VP), a level per timestep; `zero_terminal_snr` makes another of one.
- `karras`, `exponential`, `lu`, `beta`: levels spaced in sigma/alpha, on top of a VP `base` or alone (alpha = 1); and
  `edm`.
- `flow`: alpha = 1 - sigma, with static or dynamic shift.
- `from_levels`: any list of levels, such as a searched one.

Names, defaults and rounding are those of diffusers; the tables are computed from float64 betas, so they carry
about 1e-15 where diffusers' fp32 tables carry 1e-6 to 1e-5.
"""

from fastdiff.schedules._discrete import (
    DiscreteSchedule,
    cosine,
    from_alphas_cumprod,
    from_betas,
    laplace,
    linear,
    scaled_linear,
    sigmoid,
    zero_terminal_snr,
)
from fastdiff.schedules._flow import FlowSchedule, flow
from fastdiff.schedules._grid import Final, Grid, Placement, Schedule, Spacing, Steps
from fastdiff.schedules._levels import LevelSchedule, from_levels
from fastdiff.schedules._sigma import SigmaSchedule, beta, edm, exponential, karras, lu

__all__ = [
    "DiscreteSchedule",
    "Final",
    "FlowSchedule",
    "Grid",
    "LevelSchedule",
    "Placement",
    "Schedule",
    "SigmaSchedule",
    "Spacing",
    "Steps",
    "beta",
    "cosine",
    "edm",
    "exponential",
    "flow",
    "from_alphas_cumprod",
    "from_betas",
    "from_levels",
    "karras",
    "laplace",
    "linear",
    "lu",
    "scaled_linear",
    "sigmoid",
    "zero_terminal_snr",
]
