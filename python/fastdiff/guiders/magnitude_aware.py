# SPDX-License-Identifier: Apache-2.0
"""Magnitude-aware guidance."""

from __future__ import annotations

from typing import Any

from fastdiff.guiders._guidance import Scaled, adaptive_recipe
from fastdiff.guiders._recipe import Course, Recipe


class MagnitudeAware(Scaled):
    r"""guided = u + s' (c - u), s' = 1 + (s - 1) exp(-alpha |c - u| / |u|): less where the update is long.

    MAMBO-G (arXiv 2508.03442), as diffusers' `MagnitudeAwareGuidance`. With `from_cond`:
    c + s exp(...) (c - u).

    Args:
        scale: s.
        alpha: how fast the scale fades.
        rescale, from_cond, start, stop: as for `CFG`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, scale: float = 10.0, *, alpha: float = 8.0, **options: Any) -> None:
        super().__init__(scale, **options)
        self.alpha = alpha

    def recipe(self, course: Course) -> Recipe:
        return adaptive_recipe(
            self.guided(course), "magnitude_aware", self.parameters(course, first=self.alpha)
        )
