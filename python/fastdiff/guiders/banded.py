# SPDX-License-Identifier: Apache-2.0
"""One guidance per frequency band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.guiders._guidance import Guidance, Predictions, Source
from fastdiff.guiders._recipe import Course, Recipe
from fastdiff.guiders._rows import Rows, evaluate
from fastdiff.planners.plan import Plan


class Banded(Guidance):
    """merge(g_1(c_1, u_1), g_2(c_2, u_2), ...): predictions are split into bands, each with a guidance of its own.

    Frequency-decoupled guidance (Sadat et al. 2025, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at
    Low CFG Scales", arXiv 2506.19713) with any split: a Laplacian pyramid, a wavelet transform, a Fourier filter.

    Args:
        split: prediction [B, *sample] -> one tensor per band, of any shapes [B, ...].
        merge: the bands, as a list -> prediction. merge(split(x)) must be x.
        guidances: one per band, all with the same branches.

    Raises:
        ValueError: guidances with different branches, or none.
    """

    def __init__(
        self,
        split: Callable[[Tensor], Sequence[Tensor]],
        merge: Callable[[list[Tensor]], Tensor],
        guidances: Sequence[Guidance],
    ) -> None:
        super().__init__()
        if not guidances or any(g.branches != guidances[0].branches for g in guidances):
            raise ValueError("Banded: expected at least one guidance, all with the same branches")
        self.split, self.merge, self.guidances = split, merge, list(guidances)
        self.branches = guidances[0].branches

    def recipe(self, course: Course) -> Recipe:
        raise NotImplementedError(
            "Banded: bands are not in a step's table; apply and __call__ do not ask for it"
        )

    def fresh(self) -> Banded:
        return Banded(self.split, self.merge, [guidance.fresh() for guidance in self.guidances])

    def reset(self) -> None:
        for guidance in self.guidances:
            guidance.reset()

    def __call__(
        self,
        cond: Tensor,
        uncond: Tensor,
        *others: Tensor,
        step: int | None = None,
        steps: int = 1,
        t: float | None = None,
    ) -> Tensor:
        bands = [self.split(x) for x in (cond, uncond, *others)]
        counts = {len(band) for band in bands}
        if counts != {len(self.guidances)}:
            raise ValueError(f"Banded: split must give {len(self.guidances)} bands, got {sorted(counts)}")
        return self._merge_like(
            cond,
            [
                g(*band, step=step, steps=steps, t=t)
                for g, band in zip(self.guidances, zip(*bands, strict=True), strict=True)
            ],
        )

    def _merge_like(self, x: Tensor, bands: list[Tensor]) -> Tensor:
        """The bands merged, to a prediction of the size of x."""
        return self.merge(bands)

    def apply(self, plan: Plan) -> Plan:
        """The plan itself: the guided prediction is made before its step."""
        if plan.is_guided:
            raise ValueError(f"plan {plan.solver}: it is guided already")
        return plan

    def source(self, plan: Plan, model: Any) -> Source:
        own = self.fresh()  # a run keeps its own momentum

        def predictions(x: Tensor, t: Tensor) -> Predictions:
            if not isinstance(model, Rows):
                return tuple(model(x, t))
            count = len(self.guidances[0].branches)
            everyone = torch.arange(len(x), device=x.device)
            return evaluate(model, x, t, dict.fromkeys(range(count), everyone), count)

        def source(i: int, x: Tensor, t: Tensor, _: Predictions) -> Tensor:
            uncond, cond, *others = predictions(x, t)
            return own(cond, uncond, *others, step=i, steps=plan.steps, t=float(plan.timesteps[i]))

        return source
