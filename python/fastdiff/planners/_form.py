# SPDX-License-Identifier: Apache-2.0
"""Data form or noise form: which of the model's two estimates an exponential integrator takes for m, and its rows."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.planners._execution import Threshold
from fastdiff.planners._tables import Level, Table, clamp_range, combine, conversion, set_x0, x0_rows


@dataclass(frozen=True)
class Form:
    """What m is, and how it comes from x and the prediction.

    Attributes:
        data: m is x0 (data form), else eps (noise form).
        clip: the bounds of x0. In noise form eps is derived again from the clipped x0.
        threshold: dynamic threshold of x0 instead.
    """

    data: bool
    clip: tuple[float, float] | None = None
    threshold: Threshold | None = None

    @property
    def m(self) -> str:
        """The row of m, which the history keeps."""
        return "x0" if self.data else "eps"

    @property
    def _clips(self) -> bool:
        return self.clip is not None or self.threshold is not None

    def rows(self, kind: str) -> tuple[str, ...]:
        """The rows that `set_m` fills."""
        if self.data:
            return x0_rows(kind)
        return (*x0_rows(kind), "eps") if self._clips else ("d", "eps")

    def set_m(self, table: Table, i: int, kind: str, level: Level) -> None:
        """The rows of m at step i."""
        alpha, sigma = level
        if self.data or self._clips:
            set_x0(table, i, kind, level, self.clip)
        else:
            table.set(i, "d", combine((alpha, conversion(kind, level)[0])))
        if not self.data:
            eps = {"x": 1 / sigma, "x0": -alpha / sigma} if self._clips else conversion(kind, level)[1]
            table.set(i, "eps", eps)

    def x(self, level: Level) -> dict[str, float]:
        """x, in the terms in which a step can scale it.

        In noise form x_t = (alpha_t/alpha_s) x - ... eps, whose terms are alpha_t/alpha_s times as large as their sum
        at high noise. So x is there d + sigma eps with the row d = x - sigma eps = alpha x0: the coefficients of eps
        then cancel in float64, in the planner.
        """
        alpha, sigma = level
        if self.data:
            return {"x": 1.0}
        return {"x0": alpha, "eps": sigma} if self._clips else {"d": 1.0, "eps": sigma}


def form(data: bool, clip_sample: float | tuple[float, float] | None, threshold: Threshold | None) -> Form:
    """The form, checked.

    Raises:
        ValueError: both a clip and a threshold, or an empty range.
    """
    if clip_sample is not None and threshold is not None:
        raise ValueError("clip_sample, threshold: pass one or the other")
    return Form(data, clamp_range(clip_sample), threshold)
