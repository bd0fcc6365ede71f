# SPDX-License-Identifier: Apache-2.0
"""Heun's method, for the diffusion ODE and for flow matching, with the churn of EDM's stochastic sampler.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364),
algorithms 1 and 2.
"""

from __future__ import annotations

import math

from fastdiff.planners._euler import default_prediction
from fastdiff.planners._slopes import NO_CHURN, Churn, Evaluations, Step, churned_init, path_of, starts
from fastdiff.planners._tables import clamp_range, levels_of
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def heun(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    exact_churn: bool = False,
    clip_sample: float | tuple[float, float] | None = None,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """Euler's step from s to t, then x_t + c_t (tau_t - tau_s)/2 (slope_t - slope_s) with the slope there.

    Second order, two evaluations of the model (two entries of the plan) per step, but one where the step ends at
    sigma = 0: 2 S - 1 in all. u = x/c and tau are x/alpha and sigma/alpha with slope eps, the equation of the paper on
    VE, VP and EDM schedules; on a flow schedule x and sigma with slope eps - x0, the velocity.

    With s_churn > 0 a step starts from the noisier level tau_hat = (1 + gamma) tau, gamma = min(s_churn/S, sqrt(2) - 1)
    where s_tmin <= tau <= s_tmax: noise is added at the end of the step before, so that the model sees it, and is told
    tau_hat. The plan then starts at the first tau_hat, with `init_noise_sigma` of its noise.

    The defaults give what diffusers' `HeunDiscreteScheduler` gives, whose x is our x/alpha, and on a flow schedule what
    its `FlowMatchHeunDiscreteScheduler` gives.

    Trap: the churn of `FlowMatchHeunDiscreteScheduler` adds s_noise sqrt(sigma_hat^2 - sigma^2) z to x only after the
    model has seen it, leaves alpha as it was, shrinks the model's velocity by sigma/sigma_hat, and divides s_churn by
    2 S - 1. So is it done here on a flow schedule, unless `exact_churn`. Its samples have wrong moments, however many
    the steps: for data N(0.3, 0.5^2) and s_churn = 10, about twice the mean and twice the variance.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm. Default: flow on a flow
            schedule, edm on EDM's, epsilon elsewhere.
        s_churn: amount of noise, 0 or more; from (sqrt(2) - 1) S on it is at its maximum.
        s_tmin, s_tmax: range of tau in which noise is added.
        s_noise: factor on its standard deviation, 1 or a little more.
        exact_churn: algorithm 2 on a flow schedule too: x_hat = (alpha_hat/alpha) x + s_noise sqrt(sigma_hat^2 -
            (alpha_hat/alpha)^2 sigma^2) z, which stays on the path. Elsewhere there is no other churn.
        clip_sample: clamp x0 to (-r, r), or to (low, high); the slope is then that of the clamped x0.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule; "linspace" is not rounded.

    Raises:
        ValueError: unknown names, bad ranges, a level with alpha = 0 that is not a flow's, eps prediction there.
    """
    kind = default_prediction(prediction, schedule)
    clamp, churn = clamp_range(clip_sample), Churn(s_churn, s_tmin, s_tmax, s_noise)
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, rounded=False), final_sigmas_type)
    path, levels = path_of("heun", grid), levels_of(grid)
    late = path.straight and not exact_churn
    begin = starts(grid, schedule, path, NO_CHURN if late else churn)

    made = Evaluations(kind, path, history=1, clamp=clamp)
    for i, (start, end) in enumerate(zip(begin, levels[1:], strict=True)):
        if i > 0:
            made.moved(start.factor, start.noise)
        tau, tau_t = path.time(start.level), path.time(end)
        gamma = churn.gamma(tau, 2 * len(begin) - 1) if late else 0.0
        hat, x0 = (1 + gamma) * tau, made.keeps_x0(end)
        if gamma == 0:
            made.add(start.told, start.level, made.line(start.level, end, x0=x0), x0=x0)
        else:  # NOTE: as it is in diffusers, see above
            step, noise = Step({"m": tau_t - hat}, adds=True), s_noise * math.sqrt(hat**2 - tau**2)
            made.add(start.told, start.level, step, noise=noise, shrink=1 / (1 + gamma))
        if tau_t > 0:
            told = grid.times[i + 1] if i + 1 < len(begin) else path.at(schedule, tau_t)[0]
            w = path.scale(end) * (tau_t - hat) / 2
            made.add(told, end, Step({}, adds=True).plus((w, made.change(end, x0=x0))), x0=x0)
    return made.plan("heun", 2, levels[-1], churned_init(begin[0], grid))
