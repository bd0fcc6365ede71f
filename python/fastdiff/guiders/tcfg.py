# SPDX-License-Identifier: Apache-2.0
"""Tangential damping classifier-free guidance."""

from __future__ import annotations

from typing import Any

from fastdiff.guiders._guidance import Scaled, adaptive_recipe
from fastdiff.guiders._recipe import Course, Recipe


class TCFG(Scaled):
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

    def __init__(self, scale: float = 7.5, **options: Any) -> None:
        super().__init__(scale, **options)

    def recipe(self, course: Course) -> Recipe:
        return adaptive_recipe(self.guided(course), "tangential", self.parameters(course))
