# SPDX-License-Identifier: Apache-2.0
"""Adaptive projected guidance."""

from __future__ import annotations

from fastdiff.guiders._guidance import Guidance, adaptive_recipe, difference
from fastdiff.guiders._recipe import Course, Recipe, active, parameters, where

MOMENTUM, NEXT_MOMENTUM = "momentum", "momentum'"


class APG(Guidance):
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
        rescale: float = 0.0,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1 or not norm_threshold >= 0:
            raise ValueError(
                f"APG: rescale must be in 0 ... 1 and norm_threshold at least 0, got {rescale} and {norm_threshold}"
            )
        self.scale, self.eta, self.norm_threshold, self.momentum = scale, eta, norm_threshold, momentum
        self.rescale, self.from_cond, self.start, self.stop = rescale, from_cond, start, stop

    def recipe(self, course: Course) -> Recipe:
        on = active(self.start, self.stop, course.steps) & (self.scale != (0 if self.from_cond else 1))
        table = parameters(
            course.steps, scale=self.scale, rescale=self.rescale, from_cond=float(self.from_cond), first=self.eta,
            second=self.norm_threshold,
        )  # fmt: skip
        if self.momentum is None:
            return adaptive_recipe(on, "apg", table)
        # The slot starts as zeros, so that the first step needs no case of its own.
        row = difference(on) | {MOMENTUM: where(on, self.momentum, 1.0)}
        return adaptive_recipe(
            on, "apg", table, extras=(MOMENTUM,), extra_columns=(NEXT_MOMENTUM,), mix=((self.momentum, 0.0, 1.0),),
            rows={NEXT_MOMENTUM: row}, carry={MOMENTUM: NEXT_MOMENTUM},
        )  # fmt: skip
