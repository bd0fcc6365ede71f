# SPDX-License-Identifier: Apache-2.0
"""CFG++."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastdiff.guiders._guidance import Guidance, classifier_free, collapsed, course_of, is_single
from fastdiff.guiders._recipe import UNCOND, Course, Recipe
from fastdiff.planners._tables import x0_and_eps
from fastdiff.planners.plan import Plan

NEGLIGIBLE = 1e-12  # of a coefficient that cancels in exact arithmetic


class CFGPlusPlus(Guidance):
    """x0 from the guided prediction u + w (c - u), w between 0 and 1; the noise of the next x from u.

    Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models" (arXiv 2406.08070),
    algorithm 2 for DDIM:

        x0 = (x - sigma guided) / alpha,   x' = alpha' x0 + sigma' u

    and by the same split for every plan of one evaluation per step without history or clipping: of x' = A x + c p, the
    part alpha' x0(guided) is guided, the rest takes u. Called on predictions it gives u + w (c - u): the split is the
    plan's.

    Args:
        scale: w.

    Raises:
        ValueError: applied to a plan with a history, a threshold or clipping, or already guided.
    """

    def __init__(self, scale: float = 0.6) -> None:
        super().__init__()
        self.scale = scale

    def recipe(self, course: Course) -> Recipe:
        on = torch.ones(course.steps, dtype=torch.bool)
        return classifier_free(on, torch.full((course.steps,), self.scale, dtype=torch.float64))

    def apply(self, plan: Plan) -> Plan:
        if not is_single(plan):
            raise ValueError(
                "CFGPlusPlus: expected a plan of one evaluation per step without history, clipping or guidance, "
                f"got {plan!r}"
            )
        a, p, noise = collapsed(plan)
        table = torch.zeros(plan.steps, 2, 7, dtype=torch.float64)  # x, prediction | x0, x' | z, bounds
        table[..., -2], table[..., -1] = -torch.inf, torch.inf
        levels = zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True)
        x0 = torch.tensor([x0_and_eps(plan.prediction, *level)[0] for level in list(levels)[: plan.steps]],
                          dtype=torch.float64)  # fmt: skip
        alpha = plan.alphas[1:]
        table[:, 0, :2] = x0
        table[:, 1, 0] = _without_noise(a - alpha * x0[:, 0])
        table[:, 1, 2], table[:, 1, 4] = alpha, noise
        split = replace(plan, table=table, rows=("x0", "x'"), carry={"x": "x'"})
        guided = self.recipe(course_of(plan))
        result = super().apply(split)
        # The rest of x' is u's.
        own = result.table.clone()
        row, column = len(guided.rows) + 1, result.inputs.index(UNCOND)
        own[:, row, column] = _without_noise(p - alpha * x0[:, 1])
        return replace(result, table=own)


def _without_noise(coefficient: torch.Tensor) -> torch.Tensor:
    return torch.where(coefficient.abs() < NEGLIGIBLE, 0.0, coefficient)
