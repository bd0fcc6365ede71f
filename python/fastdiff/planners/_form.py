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
    def clips(self) -> bool:
        """Whether x0 is clipped, statically or by a threshold."""
        return self.clip is not None or self.threshold is not None

    def rows(self, kind: str) -> tuple[str, ...]:
        """The rows that `set_m` fills."""
        if self.data:
            return x0_rows(kind)
        return (*x0_rows(kind), "eps") if self.clips else ("d", "eps")

    def set_m(self, table: Table, i: int, kind: str, level: Level) -> None:
        """The rows of m at step i."""
        alpha, sigma = level
        if self.data or self.clips:
            set_x0(table, i, kind, level, self.clip)
        else:
            table.set(i, "d", combine((alpha, conversion(kind, level)[0])))
        if not self.data:
            eps = {"x": 1 / sigma, "x0": -alpha / sigma} if self.clips else conversion(kind, level)[1]
            table.set(i, "eps", eps)

    @property
    def part(self) -> str:
        """What stands for x in a step: x itself, or in noise form the row that is alpha x0, or x0 if it is clipped."""
        return "x" if self.data else "x0" if self.clips else "d"

    def x(self, level: Level, part: str = "", m: str = "") -> dict[str, float]:
        """x at a level, in the terms in which a step can scale it.

        In noise form x_t = (alpha_t/alpha_s) x - ... eps, whose terms are alpha_t/alpha_s times as large as their sum
        at high noise. So x is there d + sigma eps with the row d = x - sigma eps = alpha x0: the coefficients of eps
        then cancel in float64, in the planner.

        Args:
            level: (alpha, sigma).
            part, m: where the two are kept, if x is that of an earlier evaluation.
        """
        alpha, sigma = level
        part, m = part or self.part, m or self.m
        if self.data:
            return {part: 1.0}
        return {part: alpha if self.clips else 1.0, m: sigma}


def form(data: bool, clip_sample: float | tuple[float, float] | None, threshold: Threshold | None) -> Form:
    """The form, checked.

    Raises:
        ValueError: both a clip and a threshold, or an empty range.
    """
    if clip_sample is not None and threshold is not None:
        raise ValueError("clip_sample, threshold: pass one or the other")
    return Form(data, clamp_range(clip_sample), threshold)
