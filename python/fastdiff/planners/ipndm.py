# SPDX-License-Identifier: Apache-2.0
"""iPNDM: Zhang and Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv 2204.13902),
after the PNDM of Liu et al. 2022 (arXiv 2202.09778)."""

from __future__ import annotations

from itertools import pairwise

from fastdiff.planners._bashforth import ADAMS, bashforth_plan
from fastdiff.planners._execution import Threshold
from fastdiff.planners._form import form
from fastdiff.planners._tables import levels_of
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def ipndm(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    order: int = 4,
    exact_start: bool = False,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
) -> Plan:
    """DDIM along a mean of the last noise predictions, with the classical Adams-Bashforth coefficients:

        1: eps_0                  2: (3 eps_0 - eps_1)/2
        3: (23 eps_0 - 16 eps_1 + 5 eps_2)/12
        4: (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3)/24
        x_t = alpha_t (x - sigma_s mean)/alpha_s + sigma_t mean

    The first evaluations have the lower orders. The coefficients are those of equal steps in rho = sigma/alpha, since
    x/alpha moves by (rho_t - rho_s) mean: there, as on `karras(rho=1)`, orders 3 and 4 show. Where the steps change
    smoothly the order is 2 at most; `deis(space="rho")` has the coefficients of the actual steps.

    On the levels that it chooses, diffusers' `IPNDMScheduler` is this with prediction "v".

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many model evaluations, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm.
        order: 1 to 4.
        exact_start: where a schedule starts at alpha = 0, use the x0 that the model predicts there. Trap: diffusers
            takes x0 = 0, so that nothing of what the model says at its first evaluation has an effect.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r) or (low, high); eps is derived again from it.
        threshold: dynamic threshold of x0 instead.

    Raises:
        ValueError: another order, unknown names, bad ranges, a prediction that does not determine eps at alpha = 0.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1 to 4, got {order}")
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, endpoint=False), final_sigmas_type)
    older: list[list[float]] = [[]]
    for (alpha, sigma), (alpha_t, sigma_t) in pairwise(levels_of(grid)[1:]):
        ddim = sigma_t - alpha_t * sigma / alpha
        weights = ADAMS[min(order, len(older) + 1)]
        older.append([ddim * w / sum(weights) for w in weights[1:]])
    return bashforth_plan(
        "ipndm",
        grid,
        grid.times,
        older,
        prediction=prediction,
        form=form(False, clip_sample, threshold),
        order=order,
        zero_start=not exact_start,
    )
