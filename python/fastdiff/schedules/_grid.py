# SPDX-License-Identifier: Apache-2.0
"""What a schedule is, and the levels it gives to a solver."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Spacing = Literal["leading", "linspace", "trailing"]
Final = Literal["zero", "sigma_min"]
Steps = int | Sequence[float]


@dataclass(frozen=True)
class Grid:
    """The levels a solver visits: S model evaluations and the end point."""

    times: tuple[float, ...]  # [S] what the model is told; whole numbers where the schedule is discrete
    alphas: tuple[float, ...]  # [S + 1]
    sigmas: tuple[float, ...]  # [S + 1], strictly decreasing relative to alpha; the last two may be equal
    ascending: bool = False  # strictly increasing instead: from data to noise

    def __post_init__(self) -> None:
        sign = -1 if self.ascending else 1
        *ratios, last = (sign * level_ratio(a, s) for a, s in zip(self.alphas, self.sigmas, strict=True))
        if not ratios or not all(a > b for a, b in pairwise(ratios)) or ratios[-1] < last:
            direction = "increase" if self.ascending else "decrease"
            raise ValueError(
                f"schedule: noise levels must {direction} from step to step, got timesteps {self.times}"
            )

    @property
    def lambdas(self) -> tuple[float, ...]:
        """Half log-SNR, ln(alpha/sigma) [S + 1]; +inf where sigma = 0, -inf where alpha = 0."""
        return tuple(half_log_snr(a, s) for a, s in zip(self.alphas, self.sigmas, strict=True))


@dataclass(frozen=True)
class Placement:
    """How S timesteps are chosen out of T, with the rounding of diffusers.

    Attributes:
        spacing: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2.
        offset: added to each timestep under "leading".
        endpoint: True places S points down to the last level (DDIM, Euler); False places S + 1 and drops the
            last one, because the solver's own end point follows (DPM-Solver++ and its relatives).
        rounded: round "linspace" timesteps to integers.
    """

    spacing: Spacing = "linspace"
    offset: int = 0
    endpoint: bool = True
    rounded: bool = True

    def timesteps(self, steps: int, num_train_timesteps: int, usable: int | None = None) -> tuple[float, ...]:
        """S decreasing timesteps out of T, of which the first `usable` ones (default: all) may be chosen.

        Raises:
            ValueError: steps outside [1, T], unknown spacing.
        """
        check_steps(steps, num_train_timesteps)
        last = num_train_timesteps if usable is None else usable
        points = steps if self.endpoint else steps + 1
        if self.spacing == "linspace":
            # NOTE: k * (last / intervals) in this order: half-way cases then round as numpy.linspace's do
            width = (last - 1) / max(points - 1, 1)
            exact = [min(k * width, float(last - 1)) for k in range(points)]
            ascending = [float(round(t)) for t in exact] if self.rounded else exact
        elif self.spacing == "leading":
            ascending = [float(k * (last // points) + self.offset) for k in range(points)]
        elif self.spacing == "trailing":
            # NOTE: numpy.arange(T, 0, -T/S) steps by the rounded difference of its first two values, and has
            # a surplus value (timestep -1) for some S, dropped here. The same with and without endpoint.
            width = last - (last - num_train_timesteps / steps)
            times = (float(round(last - k * width) - 1) for k in range(steps))
            return tuple(t for t in times if t >= 0)
        else:
            raise ValueError(
                f"timestep_spacing: expected leading, linspace or trailing, got {self.spacing!r}"
            )
        return tuple(reversed(ascending[points - steps :]))


EVENLY = Placement()


class Schedule(ABC):
    """A noise schedule, x_t = alpha_t x0 + sigma_t eps."""

    @abstractmethod
    def grid(self, steps: Steps, place: Placement = EVENLY, final: Final = "zero") -> Grid:
        """The levels that a solver visits.

        Args:
            steps: number of steps, or the timesteps themselves, decreasing.
            place: how the steps are placed; only a discrete schedule looks at the spacing.
            final: level after the last step: sigma = 0, or the smallest level of training.

        Raises:
            ValueError: steps < 1, more steps than levels, levels that do not decrease, an unknown name.
        """

    def at(self, ratio: float) -> tuple[float, tuple[float, float]]:
        """What the model is told where sigma/alpha = ratio, and (alpha, sigma) there: a level between the grid's.

        Raises:
            ValueError: the schedule knows its own levels only.
        """
        raise ValueError(f"schedule {type(self).__name__}: no level between its own")

    def solver_times(self, times: tuple[float, ...]) -> tuple[float, ...]:
        """The whole numbers that diffusers' DPM-Solver, UniPC, DEIS and SA-Solver tell the model instead of `times`.

        Trap: fractions are cut off, here and almost everywhere; see `SigmaSchedule`.
        """
        return tuple(float(math.trunc(t)) for t in times)


def half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = ln(alpha / sigma), with its limits."""
    if sigma == 0:
        return math.inf
    return math.log(alpha) - math.log(sigma) if alpha > 0 else -math.inf


def vp_level(ratio: float) -> tuple[float, float]:
    """(alpha, sigma) with sigma/alpha = ratio and alpha^2 + sigma^2 = 1."""
    alpha = 1 / math.hypot(1, ratio)
    return alpha, ratio * alpha


def level_ratio(alpha: float, sigma: float) -> float:
    return sigma / alpha if alpha > 0 else math.inf


def columns(levels: list[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    alphas, sigmas = zip(*levels, strict=True)
    return alphas, sigmas


def ramp(first: float, last: float, points: int) -> list[float]:
    """`points` equidistant values, both ends exact."""
    inner = [first + k * ((last - first) / (points - 1)) for k in range(1, points - 1)]
    return [first, *inner, last][:points]


def explicit_timesteps(timesteps: Sequence[float]) -> tuple[float, ...]:
    check_steps(len(timesteps))
    return tuple(float(t) for t in timesteps)


def check_steps(steps: int, most: float = math.inf) -> None:
    if not 1 <= steps <= most:
        raise ValueError(
            f"steps: expected {'at least 1' if math.isinf(most) else f'1 to {most:.0f}'}, got {steps}"
        )


def ends_at_zero(final: str) -> bool:
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type: expected zero or sigma_min, got {final!r}")
    return final == "zero"
