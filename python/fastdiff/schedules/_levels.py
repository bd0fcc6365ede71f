# SPDX-License-Identifier: Apache-2.0
"""Levels that somebody else has chosen: searched schedules, or the list another program uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastdiff.schedules._grid import EVENLY, Final, Grid, Placement, Schedule, Steps


@dataclass(frozen=True, eq=False)
class LevelSchedule(Schedule):
    """A list of levels; placement and final level are part of it."""

    levels: Grid = field(repr=False)
    base: Schedule | None = None

    @property
    def steps(self) -> int:
        """How many model evaluations a one-step solver makes on it."""
        return len(self.levels.times)

    def at(self, ratio: float) -> tuple[float, tuple[float, float]]:
        if self.base is None:
            raise ValueError("schedule of given levels: it has none between them; pass base=")
        return self.base.at(ratio)

    def grid(self, steps: Steps, place: Placement = EVENLY, final: Final = "zero") -> Grid:
        if steps != self.steps:
            raise ValueError(f"schedule of {self.steps} given levels: pass steps={self.steps}, got {steps}")
        return self.levels

    def solver_times(self, times: tuple[float, ...]) -> tuple[float, ...]:
        return times


def from_levels(
    times: Sequence[float],
    alphas: Sequence[float],
    sigmas: Sequence[float],
    *,
    base: Schedule | None = None,
    ascending: bool = False,
) -> LevelSchedule:
    """A schedule of exactly these levels, such as a searched one.

    Args:
        times: [S], what the model is told at each evaluation.
        alphas, sigmas: [S + 1], the level of each evaluation, then the end point. sigma/alpha must decrease;
            only the last two may be equal.
        base: the schedule that they were taken from, for solvers that evaluate the model between the levels too.
        ascending: sigma/alpha must increase instead: a deterministic solver then goes from data to noise.

    Raises:
        ValueError: lengths that do not fit, levels that do not decrease (increase).
    """
    if not len(times) + 1 == len(alphas) == len(sigmas):
        raise ValueError(
            f"levels: expected S times and S + 1 alphas and sigmas, got {len(times)}, {len(alphas)}, {len(sigmas)}"
        )
    grid = Grid(tuple(map(float, times)), tuple(map(float, alphas)), tuple(map(float, sigmas)), ascending)
    return LevelSchedule(grid, base)
