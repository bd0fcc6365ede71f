# SPDX-License-Identifier: Apache-2.0
"""DPM2 of k-diffusion: the midpoint method in ln sigma, deterministic or ancestral.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), algorithm 2
with a midpoint instead of the correction; Lu et al. 2022, "DPM-Solver" (arXiv 2206.00927), DPM-Solver-2.
"""

from __future__ import annotations

import math

from fastdiff.planners._euler import default_prediction
from fastdiff.planners._slopes import Churn, Evaluations, churned_init, path_of, starts
from fastdiff.planners._tables import Level, levels_of
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps
from fastdiff.schedules._grid import level_ratio


def kdpm2(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str | None = None,
    eta: float = 0.0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """Euler's step from s to m, and from s to t with the slope there; tau_m = sqrt(tau_s tau_t).

    From x_m, where the model sees it, that is alpha_t x0 + sigma_t eps + c_t (tau_s - tau_m) (slope_s - slope_m), with
    the x0 and eps at m. Second order, two evaluations of the model (two entries of the plan) per step, but one where
    the step ends at sigma = 0: 2 S - 1 in all. u = x/c and tau are x/alpha and sigma/alpha with slope eps; on a flow
    schedule x and sigma with slope eps - x0, the velocity.

    With eta > 0 a step leads to the less noisy level of ratio r_down = sqrt(r_t^2 - r_up^2), r = sigma/alpha, and adds
    noise from there, r_up = eta r_t sqrt(1 - (r_t/r_s)^2). At eta = 1 the midpoint is then r_t itself.

    The defaults give what diffusers' `KDPM2DiscreteScheduler` gives, eta = 1 what its `KDPM2AncestralDiscreteScheduler`
    gives; their x is our x/alpha. Churn is that of k-diffusion's `sample_dpm_2`, see `heun`.

    Args:
        schedule: of `fastdiff.schedules`, one that has levels between its own.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm. Default: flow on a flow
            schedule, edm on EDM's, epsilon elsewhere.
        eta: 0 (deterministic) to 1 (ancestral).
        s_churn, s_tmin, s_tmax: as for `heun` with exact_churn.
        s_noise: factor on the standard deviation of all noise.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule; "linspace" is not rounded.

    Raises:
        ValueError: unknown names, bad ranges, a level with alpha = 0 that is not a flow's, eps prediction there, given
            levels without a base.
    """
    kind = default_prediction(prediction, schedule)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, rounded=False), final_sigmas_type)
    path, levels = path_of("kdpm2", grid), levels_of(grid)
    begin = starts(grid, schedule, path, Churn(s_churn, s_tmin, s_tmax, s_noise))

    made = Evaluations(kind, path, history=1)
    for i, (start, end) in enumerate(zip(begin, levels[1:], strict=True)):
        if i > 0:
            made.moved(start.factor, start.noise)
        down, up = _ancestral(start.level, end, eta)
        tau, tau_t = path.time(start.level), path.time(down)
        if tau_t == 0:
            x0 = made.keeps_x0(down)
            made.add(start.told, start.level, made.line(start.level, down, x0=x0), x0=x0, noise=s_noise * up)
            continue
        tau_m = math.sqrt(tau * tau_t)
        told, middle = path.at(schedule, tau_m)
        x0 = made.keeps_x0(middle)
        made.add(start.told, start.level, made.line(start.level, middle, x0=x0), x0=x0)
        w = path.scale(down) * (tau_m - tau)
        step = made.line(middle, down, x0=x0).plus((w, made.change(middle, x0=x0)))
        made.add(told, middle, step, x0=x0, noise=s_noise * up)
    return made.plan("kdpm2", 2, levels[-1], churned_init(begin[0], grid))


def _ancestral(level: Level, target: Level, eta: float) -> tuple[Level, float]:
    """The level to go down to, and the noise that leads from there to the target."""
    alpha_t, sigma_t = target
    q = level_ratio(*target) / level_ratio(*level)
    down = sigma_t * math.hypot(eta * q, math.sqrt((1 - eta) * (1 + eta)))
    return (alpha_t, down), eta * sigma_t * math.sqrt((1 - q) * (1 + q))
