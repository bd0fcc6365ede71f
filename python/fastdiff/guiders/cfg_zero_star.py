# SPDX-License-Identifier: Apache-2.0
"""CFG-Zero*."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastdiff.guiders._guidance import Guidance, adaptive_recipe
from fastdiff.guiders._recipe import COND, Course, Recipe, active, parameters


class CFGZeroStar(Guidance):
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

    def __init__(
        self,
        scale: float = 7.5,
        *,
        zero_init_steps: int = 1,
        rescale: float = 0.0,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1 or zero_init_steps < 0:
            raise ValueError(
                f"CFGZeroStar: rescale must be in 0 ... 1 and zero_init_steps at least 0, got {rescale} and "
                f"{zero_init_steps}"
            )
        self.scale, self.zero_init_steps, self.rescale = scale, zero_init_steps, rescale
        self.from_cond, self.start, self.stop = from_cond, start, stop

    def recipe(self, course: Course) -> Recipe:
        # NOTE: called on predictions without a step there is no beginning
        zero = torch.arange(course.steps) < (self.zero_init_steps if course.steps > 1 else 0)
        on = (
            active(self.start, self.stop, course.steps) & (self.scale != (0 if self.from_cond else 1)) & ~zero
        )
        table = parameters(
            course.steps, scale=self.scale, rescale=self.rescale, from_cond=float(self.from_cond)
        )
        recipe = adaptive_recipe(on, "zero_star", table)
        return replace(recipe, weights={**recipe.weights, COND: (~zero).double()})
