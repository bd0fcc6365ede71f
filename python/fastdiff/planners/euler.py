# SPDX-License-Identifier: Apache-2.0
"""Euler's method, for flow matching and for the diffusion ODE.

Lipman et al. 2023, "Flow Matching for Generative Modeling" (arXiv 2210.02747); Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), algorithm 1 without
its correction.
"""

from __future__ import annotations

import torch

from fastdiff.planners._tables import Table, prediction_type, timestep_tensor, x0_and_eps
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, FlowSchedule, Placement, Schedule, Spacing, Steps


def euler(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str | None = None,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """x' = alpha' x0 + sigma' eps: one row, first order.

    x0 and eps are what the prediction makes of x, so a step follows the straight line on which both are
    constant. On a flow schedule that is Euler for dx/dsigma = v, x' = x + (sigma' - sigma) v. On a VE
    schedule, and on a VP schedule in the variable x/alpha, it is Euler for Karras' equation (1),
    d(x/alpha)/d(sigma/alpha) = eps. The state stays in the schedule's own variable, in which the model was
    trained: its input needs no scaling.

    The defaults give what diffusers' `FlowMatchEulerDiscreteScheduler` gives on a flow schedule, and
    elsewhere what its `EulerDiscreteScheduler` gives, whose x is our x/alpha.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction) or flow. Default: flow on
            a flow schedule, epsilon elsewhere.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule; "linspace" is not rounded.

    Raises:
        ValueError: unknown names, eps prediction at alpha = 0.
    """
    kind = prediction_type(prediction or ("flow" if isinstance(schedule, FlowSchedule) else "epsilon"))
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset, rounded=False), final_sigmas_type)

    table = Table(len(grid.times), ("x", "prediction"), ("x'",))
    for i, (alpha_t, sigma_t) in enumerate(zip(grid.alphas[1:], grid.sigmas[1:], strict=True)):
        x0, eps = x0_and_eps(kind, grid.alphas[i], grid.sigmas[i])
        on_x, on_prediction = (alpha_t * a + sigma_t * e for a, e in zip(x0, eps, strict=True))
        table.set(i, "x'", {"x": on_x, "prediction": on_prediction})

    return Plan(
        solver="euler",
        table=table.data,
        timesteps=timestep_tensor(grid.times),
        alphas=torch.tensor(grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
        inputs=("x", "prediction"),
        rows=("x'",),
        carry={"x": "x'"},
        prediction=kind,
        order=1,
    )
