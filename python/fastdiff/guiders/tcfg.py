# SPDX-License-Identifier: Apache-2.0
"""Tangential damping classifier-free guidance."""

from __future__ import annotations

from fastdiff.guiders._guidance import Guidance, adaptive_recipe
from fastdiff.guiders._recipe import Course, Recipe, active, parameters


class TCFG(Guidance):
    """guided = u' + s (c - u'), u' = the part of u along the first right singular vector of [c; u].

    Kwon et al. 2025, "TCFG: Tangential Damping Classifier-free Guidance" (arXiv 2503.18137). No singular value
    decomposition of long vectors: with (a, b) the first eigenvector of the 2x2 Gram matrix of c and u,
    u' = b (a c + b u). As diffusers' `TangentialClassifierFreeGuidance`.

    Args:
        scale: s.
        rescale, from_cond, start, stop: as for `CFG`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        scale: float = 7.5,
        *,
        rescale: float = 0.0,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise ValueError(f"TCFG: rescale must be in 0 ... 1, got {rescale}")
        self.scale, self.rescale, self.from_cond = scale, rescale, from_cond
        self.start, self.stop = start, stop

    def recipe(self, course: Course) -> Recipe:
        on = active(self.start, self.stop, course.steps) & (self.scale != (0 if self.from_cond else 1))
        table = parameters(
            course.steps, scale=self.scale, rescale=self.rescale, from_cond=float(self.from_cond)
        )
        return adaptive_recipe(on, "tangential", table)
