# SPDX-License-Identifier: Apache-2.0
"""CFG-Zero*."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastdiff.guiders._guidance import Scaled, adaptive_recipe
from fastdiff.guiders._recipe import COND, Course, Recipe


class CFGZeroStar(Scaled):
    """guided = a u + s (c - a u), a = c.u / (u.u + 1e-8): u is scaled to fit c first; and nothing in the first steps.

    Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models" (arXiv 2503.18886), made
    for flows. As diffusers' `ClassifierFreeZeroStarGuidance`.

    Args:
        scale: s.
        zero_init_steps: the prediction is 0 in so many steps at the beginning of a run. For a flow, x then stays as it
            is; for a model of epsilon, 0 says that x is free of noise: use 0 steps there.
        rescale, from_cond, start, stop: as for `CFG`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, scale: float = 7.5, *, zero_init_steps: int = 1, **options: Any) -> None:
        super().__init__(scale, **options)
        if zero_init_steps < 0:
            raise ValueError(f"CFGZeroStar: zero_init_steps must be at least 0, got {zero_init_steps}")
        self.zero_init_steps = zero_init_steps

    def recipe(self, course: Course) -> Recipe:
        # NOTE: called on predictions without a step there is no beginning
        zero = torch.arange(course.steps) < (self.zero_init_steps if course.steps > 1 else 0)
        recipe = adaptive_recipe(self.guided(course) & ~zero, "zero_star", self.parameters(course))
        return replace(recipe, weights={**recipe.weights, COND: (~zero).double()})
