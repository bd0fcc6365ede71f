# SPDX-License-Identifier: Apache-2.0
"""The linear multistep method of k-diffusion: Adams-Bashforth in sigma with any spacing."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.polynomial.legendre import leggauss

from fastdiff.planners._euler import default_prediction
from fastdiff.planners._slopes import Evaluations, path_of
from fastdiff.planners._tables import levels_of
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def lms(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str | None = None,
    order: int = 4,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """u_t = u_s + the integral over tau of the polynomial through the last `order` slopes.

    With the weights w_j = int_{tau_s}^{tau_t} prod_(k != j) (tau - tau_k)/(tau_j - tau_k) dtau, whose sum is
    tau_t - tau_s, this is Euler's step and differences: x_t = alpha_t x0 + sigma_t eps + c_t sum_(j>=1) w_j
    (slope_j - slope_0). u = x/c and tau are x/alpha and sigma/alpha with slope eps; on a flow schedule x and sigma with
    slope eps - x0, the velocity. Karras et al. 2022 (arXiv 2206.00364), equation (1); Hairer, Norsett and Wanner,
    "Solving Ordinary Differential Equations I", section III.5 (variable step size Adams methods).

    The first steps have orders 1, 2, ... Euler's first step alone has an error of order 2, which is lost in the others
    where the slope hardly changes yet, at large sigma/alpha, but not on a flow schedule: there the order of the whole
    is at most 2.

    The defaults give what diffusers' `LMSDiscreteScheduler` gives, whose x is our x/alpha. It integrates with
    scipy.integrate.quad to a relative 1e-4, in fact exactly up to its float32 sigmas; here Gauss-Legendre quadrature in
    float64 is exact.

    Trap: where neighbouring steps differ much in length the weights of high orders are large and of both signs, and
    multiply the rounding of the slopes: 3e-5 in float32 for 9 beta sigmas and a v prediction, as in diffusers.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm. Default: flow on a flow
            schedule, edm on EDM's, epsilon elsewhere.
        order: 1 (Euler) to 4.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule; "linspace" is not rounded.

    Raises:
        ValueError: unknown names, bad ranges, a level with alpha = 0 that is not a flow's, eps prediction there.
    """
    kind = default_prediction(prediction, schedule)
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1 to 4, got {order}")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, rounded=False), final_sigmas_type)
    path, levels = path_of("lms", grid), levels_of(grid)
    times = [path.time(level) for level in levels]

    made = Evaluations(kind, path, history=order - 1)
    for i, told in enumerate(grid.times):
        _, *older = adams_weights(times[max(i - order + 1, 0) : i + 1][::-1], times[i + 1])
        c = path.scale(levels[i + 1])
        changes = [(c * w, {f"m{n}": 1.0, "m": -1.0}) for n, w in enumerate(older, 1)]
        made.add(told, levels[i], made.line(levels[i], levels[i + 1]).plus(*changes))
    return made.plan("lms", order, levels[-1])


def adams_weights(times: Sequence[float], end: float) -> list[float]:
    """int_{times[0]}^{end} of the Lagrange polynomials on these times, newest first, by exact quadrature."""
    nodes, weights = leggauss((len(times) + 1) // 2)
    half, middle = (end - times[0]) / 2, (end + times[0]) / 2
    at = [(middle + half * float(x), half * float(w)) for x, w in zip(nodes, weights, strict=True)]
    return [sum(w * _lagrange(times, j, tau) for tau, w in at) for j in range(len(times))]


def _lagrange(times: Sequence[float], j: int, tau: float) -> float:
    value = 1.0
    for k, other in enumerate(times):
        if k != j:
            value *= (tau - other) / (times[j] - other)
    return value
