# SPDX-License-Identifier: Apache-2.0
"""Variance preserving schedules with one level per training timestep."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch

from fastdiff.schedules._grid import (
    EVENLY,
    Final,
    Grid,
    Placement,
    Schedule,
    Steps,
    columns,
    ends_at_zero,
    explicit_timesteps,
    half_log_snr,
    level_ratio,
    vp_level,
)


@dataclass(frozen=True, eq=False)
class DiscreteSchedule(Schedule):
    """alpha_t = sqrt(ab_t), sigma_t = sqrt(1 - ab_t) for t = 0 ... T-1.

    Between two timesteps the ratio sigma/alpha is interpolated linearly, as diffusers does.
    """

    name: str
    alphas_cumprod: torch.Tensor = field(repr=False)  # ab_t, float64 [T], decreasing

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.alphas_cumprod.numel()

    @property
    def alphas(self) -> torch.Tensor:
        """alpha_t, float64 [T]."""
        return self.alphas_cumprod.sqrt()

    @property
    def sigmas(self) -> torch.Tensor:
        """sigma_t, float64 [T]."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def _log_ratios(self) -> list[float]:
        return [-half_log_snr(a, s) for a, s in zip(self.alphas.tolist(), self.sigmas.tolist(), strict=True)]

    def level(self, t: float) -> tuple[float, float]:
        """(alpha_t, sigma_t) for any t in [0, T-1]."""
        low = math.floor(t)
        if not 0 <= t <= self.num_train_timesteps - 1:
            raise ValueError(
                f"schedule {self.name}: timestep {t} is outside [0, {self.num_train_timesteps - 1}]"
            )
        if low == t:
            ab = float(self.alphas_cumprod[low])
            return math.sqrt(ab), math.sqrt(1 - ab)
        below, above = (level_ratio(*self.level(n)) for n in (low, low + 1))
        return vp_level(below + (t - low) * (above - below))

    def time(self, ratio: float) -> float:
        """The t at which sigma/alpha = ratio, by linear interpolation in ln(ratio), clamped to [0, T-1]."""
        logs = self._log_ratios
        target = math.log(ratio)
        low = min(max(bisect.bisect_right(logs, target) - 1, 0), len(logs) - 2)
        t = low + min(max((target - logs[low]) / (logs[low + 1] - logs[low]), 0.0), 1.0)
        # NOTE: a level of the table must come back as its own integer, or truncation would move it by a step
        return float(round(t)) if abs(t - round(t)) < 1e-9 else t

    def grid(self, steps: Steps, place: Placement = EVENLY, final: Final = "zero") -> Grid:
        if isinstance(steps, int):
            times = place.timesteps(steps, self.num_train_timesteps)
        else:
            times = explicit_timesteps(steps)
        levels = [self.level(t) for t in times] + [(1.0, 0.0) if ends_at_zero(final) else self.level(0)]
        return Grid(times, *columns(levels))


def linear(
    num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
) -> DiscreteSchedule:
    """beta_t linear from beta_start to beta_end (Ho et al. 2020, section 4)."""
    return _from_betas(
        "linear", torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    )


def scaled_linear(
    num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
) -> DiscreteSchedule:
    """sqrt(beta_t) linear; Stable Diffusion uses beta_start = 0.00085, beta_end = 0.012."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
    return _from_betas("scaled_linear", roots**2)


def cosine(num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> DiscreteSchedule:
    """beta_t = min(1 - f((t+1)/T) / f(t/T), max_beta), f(u) = cos^2(pi/2 (u + 0.008)/1.008).

    Nichol and Dhariwal 2021, equation (17); "squaredcos_cap_v2" in diffusers.
    """

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    n = num_train_timesteps
    betas = [min(1 - f((t + 1) / n) / f(t / n), max_beta) for t in range(n)]
    return _from_betas("cosine", torch.tensor(betas, dtype=torch.float64))


def from_alphas_cumprod(alphas_cumprod: torch.Tensor, *, name: str = "custom") -> DiscreteSchedule:
    """A discrete schedule from its own table ab_t.

    Args:
        alphas_cumprod: [T], any floating dtype, within [0, 1], strictly decreasing, T >= 2. A fp32 table (a
            diffusers scheduler's) is taken as it is: its rounding is then part of the schedule.
        name: shown by `repr`.

    Raises:
        ValueError: wrong rank, too short, out of range or not decreasing.
    """
    ab = alphas_cumprod.detach().to("cpu", torch.float64, copy=True)
    if ab.ndim != 1 or ab.numel() < 2:
        raise ValueError(f"alphas_cumprod: expected shape [T] with T >= 2, got {list(ab.shape)}")
    if not bool((ab >= 0).all() and (ab <= 1).all() and (ab.diff() < 0).all()):
        raise ValueError("alphas_cumprod: expected values that strictly decrease within [0, 1]")
    return DiscreteSchedule(name, ab)


def _from_betas(name: str, betas: torch.Tensor) -> DiscreteSchedule:
    return from_alphas_cumprod((1 - betas).cumprod(0), name=name)
