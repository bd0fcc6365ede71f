# SPDX-License-Identifier: Apache-2.0
"""The straight path of flow matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastdiff.schedules._grid import (
    EVENLY,
    Final,
    Grid,
    Placement,
    Schedule,
    Steps,
    ends_at_zero,
    explicit_timesteps,
    ramp,
)


@dataclass(frozen=True, eq=False)
class FlowSchedule(Schedule):
    """alpha = 1 - sigma; the model is told T sigma."""

    shift: float = 1.0
    mu: float | None = None
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    shift_terminal: float | None = None
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(
                f"schedule flow: expected a positive shift, got shift={self.shift}, mu={self.mu}"
            )
        if self.time_shift_type not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type: expected exponential or linear, got {self.time_shift_type!r}")

    @property
    def factor(self) -> float:
        """The shift in force: `shift`, or exp(mu) (mu itself for time_shift_type = "linear")."""
        if self.mu is None:
            return self.shift
        return math.exp(self.mu) if self.time_shift_type == "exponential" else self.mu

    def shifted(self, sigma: float) -> float:
        """s sigma / (1 + (s - 1) sigma), Esser et al. 2024, equation (23)."""
        return self.factor * sigma / (1 + (self.factor - 1) * sigma)

    def at(self, ratio: float) -> tuple[float, tuple[float, float]]:
        sigma = 1.0 if math.isinf(ratio) else ratio / (1 + ratio)
        return self.num_train_timesteps * sigma, (1 - sigma, sigma)

    def grid(self, steps: Steps, place: Placement = EVENLY, final: Final = "zero") -> Grid:
        """As `Schedule.grid`; explicit timesteps are T sigma before the shift."""
        lowest = 1 / self.num_train_timesteps
        if not isinstance(steps, int):
            raw = [t / self.num_train_timesteps for t in explicit_timesteps(steps)]
        elif place.endpoint:
            # NOTE: diffusers' static shift moves the ends of the range and then the range itself: sigma_min
            # is shifted twice. Its dynamic shift is applied once.
            end = self.shifted(lowest) if self.mu is None else lowest
            raw = ramp(1.0, end, steps)
        else:
            # NOTE: 1 - (1, ..., 1/T) as diffusers computes it, or a time that is whole would be cut to the one below
            raw = [1 - alpha for alpha in ramp(1.0, lowest, steps + 1)[:0:-1]]
        sigmas = self._stretched([self.shifted(s) for s in raw])
        ends = [*sigmas, 0.0 if ends_at_zero(final) else self.shifted(lowest)]
        return Grid(
            tuple(s * self.num_train_timesteps for s in sigmas), tuple(1 - s for s in ends), tuple(ends)
        )

    def _stretched(self, sigmas: list[float]) -> list[float]:
        """Move the last sigma to `shift_terminal`, keep sigma = 1, scale 1 - sigma in between."""
        if self.shift_terminal is None:
            return sigmas
        if not sigmas[-1] < 1:
            raise ValueError(
                "shift_terminal: one step from sigma = 1 has no last level to move; use 2 steps or more"
            )
        scale = (1 - sigmas[-1]) / (1 - self.shift_terminal)
        return [1 - (1 - s) / scale for s in sigmas]


def flow(
    shift: float = 1.0,
    *,
    mu: float | None = None,
    time_shift_type: Literal["exponential", "linear"] = "exponential",
    shift_terminal: float | None = None,
    num_train_timesteps: int = 1000,
) -> FlowSchedule:
    """The straight path x = (1 - sigma) x0 + sigma eps (rectified flow; linear stochastic interpolant).

    Args:
        shift: static shift s of sigma, s sigma / (1 + (s-1) sigma).
        mu: dynamic (resolution-dependent) shift instead, s = exp(mu), or s = mu if time_shift_type is
            "linear".
        shift_terminal: stretch the levels so that the last one before 0 is this.
        num_train_timesteps: T; the model is told T sigma.
    """
    return FlowSchedule(shift, mu, time_shift_type, shift_terminal, num_train_timesteps)
