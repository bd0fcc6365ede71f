# SPDX-License-Identifier: Apache-2.0
"""Adaptive projected guidance."""

from __future__ import annotations

from typing import Any

from fastdiff.guiders._guidance import Scaled, adaptive_recipe, difference
from fastdiff.guiders._recipe import Course, Recipe, where

MOMENTUM, NEXT_MOMENTUM = "momentum", "momentum'"


class APG(Scaled):
    """guided = u + s v: of the update d = c - u, the part along c counts eta times, and its norm is limited.

    Sadat, Hilliges and Weber 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion
    Models" (arXiv 2410.02416). With momentum the update is the running average m = d + beta m. As diffusers'
    `AdaptiveProjectedGuidance`, whose mixed variant is this with `start` and a CFG before it.

    Args:
        scale: s.
        eta: weight of the part of the update along c; 1 is no projection.
        norm_threshold: largest norm of the update, over a sample; 0: no limit.
        momentum: beta (the paper's is negative, -0.5), or None.
        rescale: as for `CFG`.
        from_cond: c + s v.
        start, stop: as for `CFG`. The momentum stands still in the other steps.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        scale: float = 7.5,
        *,
        eta: float = 1.0,
        norm_threshold: float = 15.0,
        momentum: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(scale, **options)
        if not norm_threshold >= 0:
            raise ValueError(f"APG: norm_threshold must be at least 0, got {norm_threshold}")
        self.eta, self.norm_threshold, self.momentum = eta, norm_threshold, momentum

    def recipe(self, course: Course) -> Recipe:
        on = self.guided(course)
        table = self.parameters(course, first=self.eta, second=self.norm_threshold)
        if self.momentum is None:
            return adaptive_recipe(on, "apg", table)
        # The slot starts as zeros, so that the first step needs no case of its own.
        row = difference(on) | {MOMENTUM: where(on, self.momentum, 1.0)}
        return adaptive_recipe(
            on, "apg", table, extras=(MOMENTUM,), extra_columns=(NEXT_MOMENTUM,), mix=((self.momentum, 0.0, 1.0),),
            rows={NEXT_MOMENTUM: row}, carry={MOMENTUM: NEXT_MOMENTUM},
        )  # fmt: skip
