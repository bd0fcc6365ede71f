# SPDX-License-Identifier: Apache-2.0
"""Adaptive Guidance: classifier-free guidance until both predictions agree."""

from __future__ import annotations

import math

import torch

from fastdiff.guiders._guidance import Guidance, adaptive_recipe
from fastdiff.guiders._recipe import Course, Recipe, active, parameters, where

QUANTITIES = ("epsilon", "x0", "model")


class AdaptiveGuidance(Guidance):
    """u + s (c - u) until cos(u, c) reaches a threshold, and c from then on: per sample, and latched.

    Castillo et al. 2025, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models" (arXiv
    2312.12487). The step that reaches the threshold takes c already. With a `Rows` model a run then leaves the
    unconditional evaluations of such samples out of the batch, and of all of them once all have crossed; for that it
    reads B bytes from the device before each step. With any other model it saves nothing, but never waits.

    The cosine is over a sample's elements. Of what, is explicit, because thresholds do not carry over. At high noise
    the noise predictions are both nearly x, whatever the prompt: where a run starts at alpha near 0, their cosine is
    above any threshold in the first step, and nothing is ever guided. Estimates of x0 differ most there and come
    together later, so they are the default, as in ComfyUI's node of this name; "epsilon" is the paper's choice.

    Args:
        scale: s.
        threshold: of the cosine.
        prediction: what is compared: "x0", "epsilon", or "model", what the model predicts. The model's prediction is
            converted at the plan's levels. Called on predictions, they are compared as they are.
        start, stop: as for `CFG`.

    Raises:
        ValueError: an unknown prediction.
    """

    def __init__(
        self,
        scale: float = 7.5,
        threshold: float = 0.991,
        *,
        prediction: str = "x0",
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if prediction not in QUANTITIES:
            raise ValueError(
                f"AdaptiveGuidance: prediction must be one of {', '.join(QUANTITIES)}, got {prediction!r}"
            )
        self.scale, self.threshold, self.prediction = scale, threshold, prediction
        self.start, self.stop = start, stop

    def recipe(self, course: Course) -> Recipe:
        wanted = course.prediction if self.prediction == "model" else self.prediction
        pairs = torch.tensor([course.conversion(i, wanted) for i in range(course.steps)], dtype=torch.float64)
        along_prediction, along_state = pairs.unbind(1)
        on = active(self.start, self.stop, course.steps) & (self.scale != 1)
        # NOTE: in other steps nothing may latch, also where only the device knows the step
        threshold = where(on, self.threshold, math.inf)
        table = parameters(
            course.steps, scale=self.scale, threshold=threshold, along_prediction=along_prediction,
            along_state=along_state,
        )  # fmt: skip
        state = ("x",) if bool((along_state != 0).any()) else ()
        return adaptive_recipe(
            on,
            "cfg",
            table,
            extras=state,
            extra_columns=state,
            mix=((1.0, -1.0, 0.0),) * len(state),
            latched=True,
        )
