# SPDX-License-Identifier: Apache-2.0
"""Black-Scholes selection among prompts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.guiders._guidance import Guidance, Predictions, Source
from fastdiff.guiders._recipe import COND, UNCOND, Course, Recipe, parameters
from fastdiff.planners._reductions import Adaptive
from fastdiff.planners.plan import Plan

MAX_CANDIDATES = 8
SELECTED = "selected-uncond"

# (x, t, predictions) -> scores [B, candidates]
Scores = Callable[[Tensor, Tensor, Predictions], Tensor]


class BlackScholes(Guidance):
    """u + s (c_k - u), k the prompt whose call option is cheapest: per sample, selected on the device.

    Kothandaraman et al. 2024, "Financial Models in Generative Art: Black-Scholes-Inspired Concept Blending in
    Text-to-Image Diffusion" (arXiv 2405.13685): spot S = the prompt's score in the forecast image (CLIP), strike K,
    rate r = 1/N, tau = N - i remaining steps, sigma^2 = the DDIM variance of the step; C = S Phi(d1) - K e^(-r tau)
    Phi(d2). Ties go to the first prompt.

    The released code has exp(-d^2/2) in place of Phi; with it the price is 0 for all inputs, because
    S exp(-d1^2/2) = K e^(-r tau) exp(-d2^2/2), and rounding decides. This is the price with Phi.

    Called as ``g(cond, uncond, cond2, ..., scores=scores)``; in a plan the model returns (uncond, cond, cond2, ...) and
    `scores` is called on them.

    Args:
        scale: s.
        candidates: how many prompts, 1 to 8.
        scores: (x, t, predictions) -> float [B, candidates]; for plans.
        strike: K.
        rate, sigma: r and sigma, instead of the run's.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        scale: float = 7.5,
        candidates: int = 2,
        *,
        scores: Scores | None = None,
        strike: float = 100.0,
        rate: float | None = None,
        sigma: float | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= candidates <= MAX_CANDIDATES or not strike > 0:
            raise ValueError(
                f"BlackScholes: expected 1 to {MAX_CANDIDATES} candidates and a positive strike, got {candidates} "
                f"and {strike}"
            )
        self.scale, self.scores, self.strike, self.rate, self.sigma = scale, scores, strike, rate, sigma
        self.candidates = (COND, *(f"cond{n}" for n in range(2, candidates + 1)))
        self.branches = (UNCOND, *self.candidates)

    def recipe(self, course: Course) -> Recipe:
        on = torch.ones(course.steps, dtype=torch.bool)
        table = parameters(
            course.steps, first=self.strike, second=1 / course.steps if self.rate is None else self.rate,
            third=self._sigmas(course), fourth=course.steps - torch.arange(course.steps),
        )  # fmt: skip
        adaptive = Adaptive("black_scholes", table, on, SELECTED, self.candidates, (UNCOND, COND), given=True)
        rows = {SELECTED: {UNCOND: -on.double()}}
        return Recipe(
            self.branches, {UNCOND: on.double(), SELECTED: self.scale * on.double()}, rows, adaptive=adaptive
        )

    def _sigmas(self, course: Course) -> float | list[float]:
        """The deviation of DDIM's step with eta = 1."""
        if self.sigma is not None:
            return self.sigma
        if course.alphas is None or course.sigmas is None:
            raise ValueError("BlackScholes: sigma must be given where there is no plan")
        if 0 in course.sigmas[:-1] or 0 in course.alphas[1:]:
            raise ValueError("BlackScholes: sigma must be given where a step begins without noise")
        levels = list(zip(course.alphas, course.sigmas, strict=True))
        sigmas = []
        for (alpha, sigma), (next_alpha, next_sigma) in itertools.pairwise(levels):
            variance = next_sigma**2 / sigma**2 * (1 - (alpha / next_alpha) ** 2)
            sigmas.append(math.sqrt(abs(variance)))
        return sigmas

    def __call__(
        self, cond: Tensor, uncond: Tensor, *others: Tensor, scores: Tensor | None = None, **at: Any
    ) -> Tensor:
        if scores is None:
            raise ValueError(f"BlackScholes: scores [B, {len(self.candidates)}] are needed, got none")
        self._state["scores"] = scores
        return super().__call__(cond, uncond, *others, **at)

    def reset(self) -> None:
        """Nothing is kept but the scores of the call that asks for this."""

    def source(self, plan: Plan, model: Any) -> Source:
        predictions_of = super().source(plan, model)
        if self.scores is None:
            raise ValueError("BlackScholes: scores must be given to run a plan")
        scores = self.scores

        def source(i: int, x: Tensor, t: Tensor, history: Predictions) -> tuple[Tensor, ...]:
            predictions = tuple(predictions_of(i, x, t, history))
            return *predictions, scores(x, t, predictions).double()

        return source
