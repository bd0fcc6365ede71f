# SPDX-License-Identifier: Apache-2.0
"""Euler's method, for flow matching and for the diffusion ODE, with Karras' churn.

Lipman et al. 2023, "Flow Matching for Generative Modeling" (arXiv 2210.02747); Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), algorithm 2 without
its correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastdiff.planners._euler import default_prediction, set_step, step_rows
from fastdiff.planners._tables import Level, Table, levels_of, timestep_tensor
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Grid, Placement, Schedule, Spacing, Steps
from fastdiff.schedules._grid import level_ratio


def euler(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str | None = None,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    exact_churn: bool = False,
    stochastic_sampling: bool = False,
) -> Plan:
    """x' = alpha' x0 + sigma' eps: first order.

    x0 and eps are what the prediction makes of x, so a step follows the straight line on which both are
    constant. On a flow schedule that is Euler for dx/dsigma = v, x' = x + (sigma' - sigma) v. On a VE
    schedule, and on a VP schedule in the variable x/alpha, it is Euler for Karras' equation (1),
    d(x/alpha)/d(sigma/alpha) = eps. The state stays in the schedule's own variable, in which the model was
    trained: its input needs no scaling.

    Churn (Karras et al. 2022, algorithm 2) first raises the noise from r = sigma/alpha to r^ = (1 + gamma) r,

        x^/alpha = x/alpha + s_noise sqrt(r^^2 - r^2) z,   gamma = min(s_churn/S, sqrt(2) - 1)

    and steps from there. Stochastic sampling draws all of the noise anew: x' = alpha' x0 + sigma' z.

    The defaults give what diffusers' `FlowMatchEulerDiscreteScheduler` gives on a flow schedule, what its
    `EDMEulerScheduler` gives on `schedules.edm`, and elsewhere what its `EulerDiscreteScheduler` gives, whose x
    is our x/alpha.

    Trap: diffusers evaluates the model at x, not at x^, and then takes its output as if it came from x^: the same to
    first order in gamma. With a v prediction it makes x0 as if at r, and eps as if at r^. Both are reproduced;
    `exact_churn` is the paper's algorithm.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, reverse_flow, edm or edm_v.
            Default: flow on a flow schedule, edm on `schedules.edm`, epsilon elsewhere.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule; "linspace" is not rounded.
        s_churn: amount of churn, 0 or more; 0 is deterministic.
        s_tmin, s_tmax: churn where s_tmin <= sigma/alpha <= s_tmax.
        s_noise: standard deviation of the churn noise; slightly above 1 makes up for lost detail.
        exact_churn: evaluate the model at x^. A step then ends at the churned level of the next one, and x starts at
            that of the first (`Plan.init_noise_sigma`), so that it remains one launch per evaluation. Needs a
            schedule that has levels between its own.
        stochastic_sampling: diffusers' option of that name, and its `FlowMatchLCMScheduler`. Excludes churn.

    Raises:
        ValueError: unknown names, eps prediction at alpha = 0, a negative s_churn or s_noise.
    """
    kind = default_prediction(prediction, schedule)
    if s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn, s_noise: expected 0 or more, got {s_churn} and {s_noise}")
    if stochastic_sampling and s_churn:
        raise ValueError("s_churn, stochastic_sampling: pass one or the other")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, rounded=False), final_sigmas_type)
    churn = _Churn(schedule, grid, s_churn / len(grid.times), s_tmin, s_tmax, s_noise)
    times, levels, init = list(grid.times), levels_of(grid), math.nan
    if exact_churn:
        times, levels, init = churn.raised()

    table = Table(len(times), ("x", "prediction"), step_rows(kind))
    for i, level in enumerate(levels[:-1]):
        alpha_t, sigma_t = levels[i + 1]
        if stochastic_sampling:
            set_step(table, i, kind, level, (alpha_t, 0.0, sigma_t))
        elif exact_churn:
            scaled = alpha_t * churn.ratio(i + 1)
            set_step(table, i, kind, level, (alpha_t, scaled, alpha_t * churn.noise(i + 1)))
        elif churn.gain(i) == 1:
            set_step(table, i, kind, level, (alpha_t, sigma_t, 0.0))
        else:
            _set_as_if_churned(table, i, kind, churn, (alpha_t, sigma_t))

    return Plan(
        solver="euler",
        table=table.data,
        timesteps=timestep_tensor(times),
        alphas=torch.tensor([a for a, _ in levels], dtype=torch.float64),
        sigmas=torch.tensor([s for _, s in levels], dtype=torch.float64),
        inputs=("x", "prediction"),
        rows=step_rows(kind),
        carry={"x": "x'"},
        prediction=kind,
        order=1,
        init_noise_sigma=init,
    )


def _set_as_if_churned(table: Table, i: int, kind: str, churn: _Churn, target: Level) -> None:
    """diffusers' step: noise after the evaluation, the prediction taken as one at the churned level."""
    (alpha, sigma), (alpha_t, sigma_t) = levels_of(churn.grid)[i], target
    gain, noise, scale = churn.gain(i), alpha * churn.noise(i), 1.0
    raised, weights = (alpha, gain * sigma), (alpha_t, sigma_t, 0.0)  # the level of x^, which is not rescaled
    if kind == "v":
        raised, weights = (alpha, sigma), (alpha_t, sigma_t / gain, 0.0)
    elif kind in ("edm", "edm_v"):  # the only predictions that depend on how x^ is scaled
        raised = _edm_level(alpha, sigma, gain)
        scale = raised[0] / alpha
    set_step(table, i, kind, raised, weights, scale=scale, noise=scale * noise)


def _edm_level(alpha: float, sigma: float, gain: float) -> Level:
    """The level of gain times the ratio, on the schedule with sigma^2 + alpha^2 sigma_data^2 = 1."""
    ratio, data = gain * sigma / alpha, math.sqrt((1 - sigma) * (1 + sigma)) / alpha
    raised = 1 / math.hypot(ratio, data)
    return raised, ratio * raised


@dataclass(frozen=True)
class _Churn:
    """Where and by how much the noise level is raised."""

    schedule: Schedule
    grid: Grid
    amount: float  # s_churn/S
    low: float
    high: float
    s_noise: float

    def ratio(self, i: int) -> float:
        return level_ratio(self.grid.alphas[i], self.grid.sigmas[i])

    def gain(self, i: int) -> float:
        """1 + gamma; no noise can be added to pure noise, nor to the end point."""
        r = self.ratio(i)
        if i == len(self.grid.times) or math.isinf(r) or not self.low <= r <= self.high:
            return 1.0
        return 1 + min(self.amount, math.sqrt(2) - 1)

    def noise(self, i: int) -> float:
        """s_noise sqrt(r^^2 - r^2)."""
        gamma = self.gain(i) - 1
        return self.s_noise * self.ratio(i) * math.sqrt(gamma * (2 + gamma)) if gamma else 0.0

    def raised(self) -> tuple[list[float], list[Level], float]:
        """Times and levels of the churned evaluations, and what noise x starts with."""
        times, levels = list(self.grid.times), levels_of(self.grid)
        for i in range(len(times)):
            if self.gain(i) > 1:
                times[i], levels[i] = self.schedule.at(self.gain(i) * self.ratio(i))
        alpha, sigma = levels[0]
        if self.gain(0) > 1:  # sigma would be alpha r^, which s_noise = 1 gives
            sigma = alpha * math.hypot(self.ratio(0), self.noise(0))
        return times, levels, math.hypot(alpha, sigma)
