# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance, with and without rescaling, and with a scale that follows the timestep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastdiff.guiders._guidance import Guidance, adaptive_recipe, classifier_free
from fastdiff.guiders._recipe import Course, Recipe, active, parameters


class CFG(Guidance):
    """Classifier-free guidance: guided = u + s (c - u).

    Ho and Salimans 2022, "Classifier-Free Diffusion Guidance" (arXiv 2207.12598), in Imagen's form. Where s = 1 the
    result is c itself and u is not read. diffusers' `ClassifierFreeGuidance` and `AutoGuidance` (whose u is a worse
    model's prediction).

    Args:
        scale: s, one for all steps or one per step.
        rescale: phi of Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv
            2305.08891), section 3.4: guided is multiplied by phi std(c) / std(guided) + 1 - phi, std over a sample.
            0: no reduction is made.
        from_cond: guided = c + s (c - u), the paper's own form (diffusers' `use_original_formulation`).
        start, stop: steps i with int(start S) <= i < int(stop S) are guided, the others take c.
        channels: (c0, c1): only these channels are guided, the others take c. DiT guides the first 3 of its 4 channels
            (not with `rescale`).

    Raises:
        ValueError: a number out of range, or channels with rescale.
    """

    def __init__(
        self,
        scale: float | Sequence[float] = 7.5,
        *,
        rescale: float = 0.0,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        channels: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise ValueError(f"{type(self).__name__}: rescale must be in 0 ... 1, got {rescale}")
        if channels is not None and rescale:
            raise ValueError(f"{type(self).__name__}: channels cannot be combined with rescale")
        self.scale, self.rescale, self.from_cond = scale, rescale, from_cond
        self.start, self.stop, self.channels = start, stop, channels

    def scales(self, course: Course) -> torch.Tensor:
        """s of each step, float64 [S]."""
        scale = torch.as_tensor(self.scale, dtype=torch.float64)
        if scale.dim() and len(scale) != course.steps:
            raise ValueError(
                f"{type(self).__name__}: scale must be one number or {course.steps} of them, got {len(scale)}"
            )
        return scale.expand(course.steps)

    def recipe(self, course: Course) -> Recipe:
        # c + s d = u + (s + 1) d
        scale = self.scales(course) + self.from_cond
        on = active(self.start, self.stop, course.steps)
        if not self.rescale:
            recipe = classifier_free(on, scale)
            return Recipe(recipe.branches, recipe.weights, recipe.rows, channels=self.channels)
        # NOTE: diffusers rescales where s = 1 too: by std(c) / std(c)
        table = parameters(course.steps, scale=scale, rescale=self.rescale)
        return adaptive_recipe(on & (scale != 1), "cfg", table)


class RescaledCFG(CFG):
    """`CFG` with the rescaling of Lin et al. 2024, section 3.4, on: phi = 0.7 as the paper recommends."""

    def __init__(
        self,
        scale: float | Sequence[float] = 7.5,
        rescale: float = 0.7,
        *,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__(scale, rescale=rescale, from_cond=from_cond, start=start, stop=stop)


class PowerCosine(CFG):
    """Classifier-free guidance whose scale grows as the noise goes: s_t = 1 + (s - 1) (1 - cos(pi (1 - t/T)^p)) / 2.

    Gao et al. 2023, "MDTv2: Masked Diffusion Transformer is a Strong Image Synthesizer", whose code and that of ITA-MDT
    this is: at t = T nothing is guided, at t = 0 all of s. Called on predictions, it needs the timestep: ``g(cond,
    uncond, t=500)``.

    Args:
        scale: s at t = 0.
        power: p.
        total: T, in the units of the model's timesteps.
        rescale, start, stop, channels: as for `CFG`.

    Raises:
        ValueError: a number out of range; called without t.
    """

    def __init__(
        self,
        scale: float = 4.0,
        power: float = 4.0,
        *,
        total: float = 1000.0,
        rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        channels: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(scale, rescale=rescale, start=start, stop=stop, channels=channels)
        if not (power > 0 and total > 0):
            raise ValueError(f"PowerCosine: power and total must be positive, got {power} and {total}")
        self.power, self.total = power, total

    def scales(self, course: Course) -> torch.Tensor:
        if course.times is None:
            raise ValueError("PowerCosine: the scale depends on the timestep; pass t")
        rest = 1 - torch.tensor(course.times, dtype=torch.float64) / self.total
        rise = (1 - torch.cos(math.pi * rest.clamp(0, 1) ** self.power)) / 2
        return 1 + (super().scales(course) - 1) * rise
