# SPDX-License-Identifier: Apache-2.0
"""Magnitude-aware guidance."""

from __future__ import annotations

from fastdiff.guiders._guidance import Guidance, adaptive_recipe
from fastdiff.guiders._recipe import Course, Recipe, active, parameters


class MagnitudeAware(Guidance):
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

    def __init__(
        self,
        scale: float = 10.0,
        *,
        alpha: float = 8.0,
        rescale: float = 0.0,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise ValueError(f"MagnitudeAware: rescale must be in 0 ... 1, got {rescale}")
        self.scale, self.alpha, self.rescale, self.from_cond = scale, alpha, rescale, from_cond
        self.start, self.stop = start, stop

    def recipe(self, course: Course) -> Recipe:
        on = active(self.start, self.stop, course.steps) & (self.scale != (0 if self.from_cond else 1))
        table = parameters(
            course.steps, scale=self.scale, rescale=self.rescale, from_cond=float(self.from_cond), first=self.alpha
        )  # fmt: skip
        return adaptive_recipe(on, "magnitude_aware", table)
