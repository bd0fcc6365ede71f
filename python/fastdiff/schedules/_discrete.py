# SPDX-License-Identifier: Apache-2.0
"""Variance preserving schedules with one level per training timestep."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
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
    lambda_min_clipped: float = -math.inf  # timesteps of a smaller ln(alpha/sigma) are not chosen

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

    @property
    def usable(self) -> int:
        """How many timesteps have lambda >= lambda_min_clipped; Lu et al. 2022 use -5.1 on the cosine schedule."""
        return sum(-r >= self.lambda_min_clipped for r in self._log_ratios)

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

    def at(self, ratio: float) -> tuple[float, tuple[float, float]]:
        return self.time(ratio), vp_level(ratio)

    def grid(self, steps: Steps, place: Placement = EVENLY, final: Final = "zero") -> Grid:
        if isinstance(steps, int):
            times = place.timesteps(steps, self.num_train_timesteps, self.usable)
        else:
            times = explicit_timesteps(steps)
        levels = [self.level(t) for t in times] + [(1.0, 0.0) if ends_at_zero(final) else self.level(0)]
        return Grid(times, *columns(levels))

    def solver_times(self, times: tuple[float, ...]) -> tuple[float, ...]:
        return times  # whole already, or the caller's own


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


def sigmoid(
    num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
) -> DiscreteSchedule:
    """beta_t = beta_start + (beta_end - beta_start) / (1 + e^-u), u linear from -6 to 6 (GeoDiff, Xu et al. 2022)."""
    u = torch.linspace(-6, 6, num_train_timesteps, dtype=torch.float64)
    return _from_betas("sigmoid", u.sigmoid() * (beta_end - beta_start) + beta_start)


def cosine(num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> DiscreteSchedule:
    """beta_t = min(1 - f((t+1)/T) / f(t/T), max_beta), f(u) = cos^2(pi/2 (u + 0.008)/1.008).

    Nichol and Dhariwal 2021, equation (17); "squaredcos_cap_v2" in diffusers.
    """
    return _from_function(
        "cosine", lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, num_train_timesteps, max_beta
    )


def laplace(num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> DiscreteSchedule:
    """As `cosine` with f = snr/(1 + snr), the log-SNR being Laplace distributed over the timesteps.

    ln snr(u) = -1/2 sign(1/2 - u) ln(1 - 2 |1/2 - u|) (Hang et al. 2024, arXiv 2407.03297); diffusers' "laplace".
    """

    def f(u: float) -> float:
        snr = math.exp(-0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6))
        return math.sqrt(snr / (1 + snr))

    return _from_function("laplace", f, num_train_timesteps, max_beta)


def from_betas(betas: torch.Tensor | Sequence[float], *, name: str = "custom") -> DiscreteSchedule:
    """A discrete schedule from beta_t [T] in (0, 1]: ab_t = prod (1 - beta_s), computed in float64.

    Raises:
        ValueError: as `from_alphas_cumprod`.
    """
    return _from_betas(name, torch.as_tensor(betas).detach().to("cpu", torch.float64))


def zero_terminal_snr(schedule: DiscreteSchedule, *, terminal: float = 0.0) -> DiscreteSchedule:
    """sqrt(ab) shifted and scaled so that it ends at 0 and starts where it did.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.

    Args:
        schedule: to be rescaled.
        terminal: ab_{T-1} instead of 0, so that x0 is determined there for an epsilon prediction too. diffusers'
            solvers take 2^-24.
    """
    root = schedule.alphas
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    ab = root**2
    ab[-1] = terminal
    return DiscreteSchedule(f"{schedule.name}, zero SNR", ab, schedule.lambda_min_clipped)


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


def _from_function(
    name: str, f: Callable[[float], float], num_train_timesteps: int, max_beta: float
) -> DiscreteSchedule:
    """ab(u) = f(u), with every beta capped."""
    n = num_train_timesteps
    betas = [min(1 - f((t + 1) / n) / f(t / n), max_beta) for t in range(n)]
    return _from_betas(name, torch.tensor(betas, dtype=torch.float64))


def _from_betas(name: str, betas: torch.Tensor) -> DiscreteSchedule:
    return from_alphas_cumprod((1 - betas).cumprod(0), name=name)
