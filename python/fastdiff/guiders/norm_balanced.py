# SPDX-License-Identifier: Apache-2.0
"""Norm-balanced guidance by an energy's gradient."""

from __future__ import annotations

from fastdiff.guiders._guidance import Guidance, adaptive_recipe
from fastdiff.guiders._recipe import COND, UNCOND, Course, Recipe, active, parameters

GRADIENT = "gradient"


class NormBalanced(Guidance):
    """guided = u + s (c - u) + k G: G, an energy's gradient, is brought to the length of the update.

    Titov et al. 2024, "Guide-and-Rescale: Self-Guidance Mechanism for Effective Tuning-Free Real Image Editing" (arXiv
    2409.01322): with r = |G| / |s (c - u)|, k = clip(r, lower, upper) / r, so that G's length becomes clip(r) times the
    update's. Norms are over a sample (the published code has batches of one). Degenerate cases as in that code: r = 1
    where the update is 0, k = 1 where G is.

    Called as ``g(cond, uncond, gradient)``; in a plan the model returns (uncond, cond, gradient).

    Args:
        scale: s.
        lower, upper: of the ratio. (0.33, 3.0) is the paper's preset for edits that keep the style.
        start, stop: as for `CFG`: in the other steps guided is c.

    Raises:
        ValueError: not 0 <= lower <= upper.
    """

    branches = (UNCOND, COND, GRADIENT)

    def __init__(
        self,
        scale: float = 7.5,
        lower: float = 0.33,
        upper: float = 3.0,
        *,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= lower <= upper:
            raise ValueError(f"NormBalanced: expected 0 <= lower <= upper, got {lower} and {upper}")
        self.scale, self.lower, self.upper = scale, lower, upper
        self.start, self.stop = start, stop

    @classmethod
    def stylisation(cls, scale: float = 7.5) -> NormBalanced:
        """The paper's preset for stylisation: the gradient is always 1.5 times as long as the update."""
        return cls(scale, 1.5, 1.5)

    def recipe(self, course: Course) -> Recipe:
        on = active(self.start, self.stop, course.steps)
        table = parameters(course.steps, scale=self.scale, first=self.lower, second=self.upper)
        return adaptive_recipe(
            on, "norm_balanced", table, branches=self.branches, extras=(GRADIENT,), extra_columns=(GRADIENT,)
        )
