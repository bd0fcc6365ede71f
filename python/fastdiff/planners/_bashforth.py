# SPDX-License-Identifier: Apache-2.0
"""Adams-Bashforth methods on the noise prediction, which DEIS and iPNDM share.

Their weights w_j of eps at this evaluation and at the ones before add up to that of the first-order step, DDIM. So they
are DDIM and a correction by differences:

    x_t = alpha_t x0 + sigma_t eps_0 + sum_(j>=1) w_j (eps_j - eps_0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from fastdiff.planners._form import Form
from fastdiff.planners._tables import (
    Level,
    Table,
    combine,
    conversion,
    levels_of,
    prediction_type,
    timestep_tensor,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Grid

# Weights of the last 1, 2, 3, 4 values, newest first, for equal steps (Hairer, Norsett and Wanner 1993, section III.1),
# as integers, to be divided by their sum.
ADAMS = {1: (1.0,), 2: (3.0, -1.0), 3: (23.0, -16.0, 5.0), 4: (55.0, -59.0, 37.0, -9.0)}


def bashforth_plan(
    solver: str,
    grid: Grid,
    times: Sequence[float],
    older: Sequence[Sequence[float]],
    *,
    prediction: str,
    form: Form,
    order: int,
    zero_start: bool = False,
) -> Plan:
    """The plan with these weights.

    Args:
        times: [S], what the model is told.
        older: [S], the weights w_1, w_2, ... of each step; none: DDIM.
        form: noise form.
        zero_start: where alpha = 0, take x0 = 0 instead of what the model says.
    """
    kind = prediction_type(prediction)
    past = [f"m{n}" for n in range(1, order)]
    made = form.rows(kind)
    if (
        kind != "epsilon" and "x0" not in made
    ):  # neither cancellation nor clipping: x' from x and the prediction
        made = ("eps",)
    inputs, rows = ("x", "prediction", *past), (*made, "x'")
    table, levels = Table(len(times), inputs, rows), levels_of(grid)
    for i, weights in enumerate(older):
        x0, eps = _estimates(table, i, form, kind, levels[i])
        alpha_t, sigma_t = levels[i + 1]
        if levels[i][0] == 0 and zero_start:
            alpha_t = 0.0
        terms = combine((alpha_t, x0), (sigma_t - math.fsum(weights), eps))
        table.set(i, "x'", terms | dict(zip(past, weights, strict=False)))
    return Plan(
        solver=solver,
        table=table.data,
        timesteps=timestep_tensor(times),
        alphas=torch.tensor(grid.alphas, dtype=torch.float64),
        sigmas=torch.tensor(grid.sigmas, dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'"} | dict(zip(past, (form.m, *past), strict=False)),
        prediction=kind,
        order=order,
        threshold=form.threshold,
    )


def _estimates(
    table: Table, i: int, form: Form, kind: str, level: Level
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Fill the rows of eps, and say what x0 and eps are, in terms that x' can use."""
    if "d" not in table.rows and "x0" not in table.rows:
        x0, eps = conversion(kind, level)
        table.set(i, "eps", eps)
        return x0, eps
    form.set_m(table, i, kind, level)
    return {"x0": 1.0} if "x0" in table.rows else {"d": 1 / level[0]}, {"eps": 1.0}
