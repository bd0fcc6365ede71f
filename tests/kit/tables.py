# SPDX-License-Identifier: Apache-2.0
"""What a plan's table does, in closed form: its rows composed, and the moments that Gaussian data takes through it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastdiff.planners import Plan
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import Mixture


def composed(plan: Plan) -> Tensor:
    """The next x of each step as one linear combination of the inputs and the noise, [S, K + 1]; without its bounds."""
    k, target = len(plan.inputs), plan.rows.index(plan.carry["x"])
    table = []
    for rows in plan.table:
        values = list(torch.eye(k + 1, dtype=torch.float64))
        inputs, z = values[:k], values[k]
        made: list[Tensor] = []
        for row in rows:
            terms = torch.stack((*inputs, *made, z))
            made.append((row[: len(inputs) + len(made)] @ terms[:-1]) + row[k + len(rows)] * z)
        table.append(made[target])
    return torch.stack(table)


def moments(
    plan: Plan, data: Mixture, deviation: Callable[[int], float] = lambda i: 1.0
) -> list[tuple[float, float]]:
    """(mean, variance) of x at the S + 1 levels of a one-step plan, exact for Gaussian data and an exact model.

    Args:
        data: of one component: the model is then affine in x.
        deviation: a factor of the noise of step i.
    """
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    (mean,), (std,) = data.means, data.stds
    result = [(levels[0][0] * mean, (levels[0][0] * std) ** 2 + levels[0][1] ** 2)]
    for i, (on_x, on_prediction, noise) in enumerate(composed(plan).tolist()):
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        at = [
            float(oracles.predict(plan.prediction, x, data.denoise(x, *levels[i]), *levels[i]))
            for x in (zero, one)
        ]
        slope, offset = on_x + on_prediction * (at[1] - at[0]), on_prediction * at[0]
        m, v = result[-1]
        result.append((slope * m + offset, slope**2 * v + (deviation(i) * noise) ** 2))
    return result
