# SPDX-License-Identifier: Apache-2.0
"""Different guidance where a mask is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastdiff.guiders._guidance import Guidance, collapsed, course_of, expanded, is_single
from fastdiff.guiders._recipe import COND, UNCOND, Course, Recipe, Region
from fastdiff.guiders.compose import Compose
from fastdiff.planners.plan import Plan


class Regional(Guidance):
    """One guidance where a mask is set, another elsewhere; in between, for a soft mask, the blend of both results.

    guided = (1 - m) outside + m inside. With `inside_plan` the solver itself differs too: x' = (1 - m) x'_outside +
    m x'_inside with one noise for both, which is DiffEditor's regional SDE (Mou et al. 2024, "DiffEditor", arXiv
    2402.02583): `ddim` with another eta inside. For a binary mask that is a noise level per pixel, for a soft one it
    is not: outcomes are blended, not levels.

    All in the one launch of the step: the mask is the gate of `fastdiff.linear_step`.

    Args:
        mask: [B | 1, C | 1, ...] of the predictions' rank; bool, uint8 or float in 0 ... 1.
        inside, outside: guidances without reductions, and without channels.
        inside_plan: a plan with the same slots and timesteps as the one that is run.

    Raises:
        ValueError: a guidance with reductions or one that changes the solver or the evaluations, or plans that do not
            fit: only such of one evaluation per step without history and clipping can be blended.
    """

    def __init__(
        self, mask: Tensor, inside: Guidance, outside: Guidance, *, inside_plan: Plan | None = None
    ) -> None:
        super().__init__()
        self.mask, self.inside, self.outside, self.inside_plan = mask, inside, outside, inside_plan
        for guidance in (inside, outside):
            own = type(guidance)
            if own.apply is not Guidance.apply or own.source is not Guidance.source:
                raise ValueError(
                    f"Regional: {own.__name__} is more than a blend and cannot be one of two regions"
                )
        more = [name for name in inside.branches if name not in outside.branches]
        self.branches = (*outside.branches, *more)

    @classmethod
    def cyclic_one_way(cls, mask: Tensor, scale: float = 7.5) -> Regional:
        """e- + s (c - e-), e- = u + (1 - m) (sup - div): Diffusion in Diffusion's four branches (COW).

        Wang et al. 2024, "Diffusion in Diffusion: Cyclic One-Way Diffusion for Text-Vision-Conditioned Generation"
        (arXiv 2306.08247). Branches: uncond (negative prompt), cond (text), sup, div. mask: where the seed image lies.
        """
        branches = (UNCOND, COND, "sup", "div")
        outside = Compose.of_terms(branches, {(COND, UNCOND): scale, ("sup", "div"): 1 - scale})
        return cls(mask, Compose([scale]), outside)

    def recipe(self, course: Course) -> Recipe:
        inside, outside = self.inside.recipe(course), self.outside.recipe(course)
        for recipe in (inside, outside):
            if recipe.adaptive or recipe.region or recipe.carry or recipe.channels:
                raise ValueError(
                    "Regional: inside and outside must be guidances without reductions, masks and channels"
                )
        zero = torch.zeros(course.steps, dtype=torch.float64)
        weights = {
            name: inside.weights.get(name, zero) - outside.weights.get(name, zero)
            for name in {**outside.weights, **inside.weights}
        }
        rows = {name: _either(outside.rows.get(name, {}), inside.rows.get(name, {}))
                for name in {**outside.rows, **inside.rows}}  # fmt: skip
        return Recipe(self.branches, outside.weights, rows, region=Region(self.mask, weights))

    def apply(self, plan: Plan) -> Plan:
        if self.inside_plan is None:
            return super().apply(plan)
        other = self.inside_plan
        same = (plan.inputs, plan.rows, plan.carry) == (other.inputs, other.rows, other.carry)
        if not same or not torch.equal(plan.timesteps, other.timesteps):
            raise ValueError(
                f"Regional: inside_plan must have the slots and timesteps of {plan!r}, got {other!r}"
            )
        if not is_single(plan) or not is_single(other):
            raise ValueError(
                "Regional: only plans of one evaluation per step without history, clipping or guidance can be blended "
                f"in one pass, got {plan!r}"
            )
        course = course_of(plan)
        both = replace(self.recipe(course), region=None)
        outside = replace(both, weights=self.outside.recipe(course).weights)
        inside = replace(both, weights=self.inside.recipe(course).weights)
        result, changed = expanded(outside, _one_row(plan)), expanded(inside, _one_row(other))
        gate = changed.table - result.table
        gate[..., -2:] = 0
        return replace(result, gate=gate, mask=self.mask)


def _either(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row in the steps in which one of both guidances forms it."""
    zero = torch.zeros((), dtype=torch.float64)
    return {k: torch.where(a.get(k, zero) != 0, a.get(k, zero), b.get(k, zero)) for k in {**a, **b}}


def _one_row(plan: Plan) -> Plan:
    """The plan with x' in one row: of rows that differ, the gate would multiply the differences."""
    table = torch.zeros(plan.steps, 1, 6, dtype=torch.float64)
    table[:, 0, 0], table[:, 0, 1], table[:, 0, 3] = collapsed(plan)
    table[..., -2], table[..., -1] = -torch.inf, torch.inf
    return replace(plan, table=table, rows=("x'",), carry={"x": "x'"})
