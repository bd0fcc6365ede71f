# SPDX-License-Identifier: Apache-2.0
"""Perpendicular negative prompts."""

from __future__ import annotations

from collections.abc import Sequence

from fastdiff.guiders._guidance import Guidance, adaptive_recipe, difference
from fastdiff.guiders._recipe import COND, UNCOND, Course, Recipe, active, parameters


class PerpNeg(Guidance):
    """guided = u + s (d - sum_j w_j p_j): of a negative prompt's n_j - u only the part p_j perpendicular to d counts.

    Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm" (Perp-Neg, arXiv 2304.04968): d = c - u,
    p_j = (n_j - u) - ((n_j - u).d / d.d) d, over a sample. What a negative prompt shares with the prompt is not taken
    away. Where d = 0 the projection is 0 (published code divides by 0).

    Called as ``g(cond, uncond, negative, ...)``; in a plan the model returns (uncond, cond, negative, ...).

    Args:
        scale: s.
        weights: w_j, one or two.
        rescale, start, stop: as for `CFG`.

    Raises:
        ValueError: not one or two weights, or a rescale outside 0 ... 1.
    """

    def __init__(
        self,
        scale: float = 7.5,
        weights: float | Sequence[float] = 1.0,
        *,
        rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights = tuple(weights) if isinstance(weights, Sequence) else (weights,)
        if len(self.weights) not in (1, 2) or not 0 <= rescale <= 1:
            raise ValueError(
                f"PerpNeg: expected one or two weights and a rescale in 0 ... 1, got {self.weights} and {rescale}"
            )
        self.scale, self.rescale, self.start, self.stop = scale, rescale, start, stop
        self.negatives = ("negative", "negative2")[: len(self.weights)]
        self.branches = (UNCOND, COND, *self.negatives)

    def recipe(self, course: Course) -> Recipe:
        on = active(self.start, self.stop, course.steps)
        first, second = (*self.weights, 0.0)[:2]
        table = parameters(course.steps, scale=self.scale, rescale=self.rescale, first=first, second=second)
        rows = {f"{name}-uncond": difference(on, name) for name in self.negatives}
        return adaptive_recipe(
            on, "perpendicular", table, branches=self.branches, extras=self.negatives, extra_columns=tuple(rows),
            mix=((1.0, -1.0, 0.0),) * len(rows), rows=rows,
        )  # fmt: skip
