# SPDX-License-Identifier: Apache-2.0
"""Blends of any number of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fastdiff.guiders._guidance import Guidance
from fastdiff.guiders._recipe import COND, UNCOND, Course, Recipe, active

MAX_DIFFERENCES = 2  # rows that a blend may take from a solver's program


class Compose(Guidance):
    """guided = u + sum_j s_j (c_j - r_j): composed prompts, several guidances at a time.

    Composable diffusion (Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models", arXiv
    2206.01714) has r_j = u: ``Compose([7.5, 3.0])``, called as ``g(cond, uncond, cond2)``. With one term per
    difference other references are possible, see `instruct_pix2pix`.

    Differences of up to two terms are formed first, so that nothing cancels; with more, the weights of the predictions
    are added up, in float64, and rounded once.

    Args:
        scales: s_j of the prompts c_1, c_2, ...
        start, stop: as for `CFG`.

    Raises:
        ValueError: no scales.
    """

    def __init__(self, scales: Sequence[float], *, start: float = 0.0, stop: float = 1.0) -> None:
        names = (COND, *(f"cond{n}" for n in range(2, len(scales) + 1)))
        if not scales:
            raise ValueError("Compose: expected at least one scale, got none")
        self._set(
            (UNCOND, *names),
            {(name, UNCOND): float(s) for name, s in zip(names, scales, strict=True)},
            start,
            stop,
        )

    def _set(
        self, branches: tuple[str, ...], terms: Mapping[tuple[str, str], float], start: float, stop: float
    ) -> None:
        super().__init__()
        self.branches, self.terms, self.start, self.stop = branches, dict(terms), start, stop

    @classmethod
    def of_terms(
        cls,
        branches: Sequence[str],
        terms: Mapping[tuple[str, str], float],
        *,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> Compose:
        """u + sum of scale (plus - minus), terms: (plus, minus) -> scale.

        Args:
            branches: names of the predictions in the model's order; the first two are "uncond" and "cond".

        Raises:
            ValueError: other first branches, or a term of an unknown one.
        """
        if tuple(branches[:2]) != (UNCOND, COND):
            raise ValueError(f"Compose: branches must begin with uncond, cond, got {tuple(branches)}")
        unknown = {name for term in terms for name in term} - set(branches)
        if unknown:
            raise ValueError(f"Compose: terms must be of {tuple(branches)}, got {', '.join(sorted(unknown))}")
        new = cls.__new__(cls)
        new._set(tuple(branches), terms, start, stop)
        return new

    @classmethod
    def instruct_pix2pix(cls, text_scale: float = 7.5, image_scale: float = 1.5) -> Compose:
        """u + s_I (e_I - u) + s_T (e_IT - e_I): Brooks et al. 2023, "InstructPix2Pix" (arXiv 2211.09800), equation (3).

        Branches: uncond (neither), cond (image and text), image (image alone).
        """
        terms = {("image", UNCOND): image_scale, (COND, "image"): text_scale}
        return cls.of_terms((UNCOND, COND, "image"), terms)

    @classmethod
    def guardians(cls, scale: float = 3.0, alpha: float = 0.7) -> Compose:
        """(1 - s) u + s alpha e_orig + s (1 - alpha) e_safe: Guardians of Generation, score space.

        alpha is the weight of the original prompt. Branches: uncond, cond (original), safe.
        """
        terms = {(COND, UNCOND): scale * alpha, ("safe", UNCOND): scale * (1 - alpha)}
        return cls.of_terms((UNCOND, COND, "safe"), terms)

    def recipe(self, course: Course) -> Recipe:
        on = active(self.start, self.stop, course.steps).double()
        weights = {UNCOND: on.clone(), COND: 1 - on}
        if len(self.terms) <= MAX_DIFFERENCES:
            rows = {f"{plus}-{minus}": {plus: on, minus: -on} for plus, minus in self.terms}
            scales = {f"{plus}-{minus}": on * scale for (plus, minus), scale in self.terms.items()}
            return Recipe(self.branches, weights | scales, rows)
        for (plus, minus), scale in self.terms.items():
            for name, sign in ((plus, 1), (minus, -1)):
                weights[name] = weights.get(name, torch.zeros_like(on)) + sign * scale * on
        return Recipe(self.branches, weights)
