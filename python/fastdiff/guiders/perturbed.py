# SPDX-License-Identifier: Apache-2.0
"""Guidance away from a perturbed branch: PAG, SLG, SEG, STG."""

from __future__ import annotations

import torch

from fastdiff.guiders._guidance import Guidance, adaptive_recipe, difference
from fastdiff.guiders._recipe import COND, DIFFERENCE, UNCOND, Course, Recipe, active, parameters, where

PERTURBED = "perturbed"
AWAY = "cond-perturbed"


class Perturbed(Guidance):
    """guided = u + s (c - u) + s' (c - k): k is the conditional prediction of a model that has been made worse.

    Perturbed attention (PAG, Ahn et al. 2024, arXiv 2403.17377), skipped layers (SLG, or STG for video), smoothed
    attention energy (SEG, Hong 2024): the methods differ in how k is made, which is the model's part. As diffusers'
    guiders of these names: where one of the two parts is off, the other one stands alone, and guided = k + s' (c - k)
    without the first.

    Called as ``g(cond, uncond, perturbed)``; in a plan the model returns (uncond, cond, perturbed).

    Args:
        scale: s.
        perturbed_scale: s'.
        perturbed_start, perturbed_stop: where c - k takes part, as fractions of the steps: as `start` and `stop`
            (diffusers leaves the first of these steps out).
        rescale, start, stop: as for `CFG`.

    Raises:
        ValueError: a rescale outside 0 ... 1.
    """

    branches = (UNCOND, COND, PERTURBED)

    def __init__(
        self,
        scale: float = 7.5,
        perturbed_scale: float = 2.8,
        *,
        perturbed_start: float = 0.0,
        perturbed_stop: float = 1.0,
        rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise ValueError(f"Perturbed: rescale must be in 0 ... 1, got {rescale}")
        self.scale, self.perturbed_scale, self.rescale = scale, perturbed_scale, rescale
        self.start, self.stop = start, stop
        self.perturbed_start, self.perturbed_stop = perturbed_start, perturbed_stop

    def recipe(self, course: Course) -> Recipe:
        guided = active(self.start, self.stop, course.steps) & (self.scale != 1)
        away = active(self.perturbed_start, self.perturbed_stop, course.steps) & (self.perturbed_scale != 0)
        # u + s d = c + (s - 1) d, and alone k + s' (c - k) = c + (s' - 1) (c - k)
        by_d = where(guided, self.scale - 1)
        by_k = where(away, where(guided, self.perturbed_scale, self.perturbed_scale - 1))
        rows = {DIFFERENCE: difference(guided), AWAY: difference(away, COND, PERTURBED)}
        if not self.rescale:
            weights = {COND: torch.ones_like(by_d), DIFFERENCE: by_d, AWAY: by_k}
            return Recipe(self.branches, weights, rows)
        on = guided | away
        table = parameters(
            course.steps, scale=where(guided, self.scale, 1.0), rescale=self.rescale, first=by_k
        )
        rows = {DIFFERENCE: difference(on), AWAY: difference(on, COND, PERTURBED)}
        return adaptive_recipe(
            on, "cfg", table, branches=self.branches, extras=(PERTURBED,), extra_columns=(AWAY,),
            mix=((-1.0, 1.0, 1.0),), rows={AWAY: rows[AWAY]},
        )  # fmt: skip
