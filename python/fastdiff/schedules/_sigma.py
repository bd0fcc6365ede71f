# SPDX-License-Identifier: Apache-2.0
"""Levels spaced in the ratio sigma/alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.schedules._discrete import DiscreteSchedule
from fastdiff.schedules._grid import (
    EVENLY,
    Final,
    Grid,
    Placement,
    Schedule,
    Steps,
    check_steps,
    columns,
    ends_at_zero,
    level_ratio,
    vp_level,
)


@dataclass(frozen=True, eq=False)
class SigmaSchedule(Schedule):
    """Levels of the ratio r = sigma/alpha between r_max and r_min, both included.

    With a `base` the process stays variance preserving, alpha = 1/sqrt(1 + r^2), sigma = r alpha, and the
    model is told the base's timestep of that ratio. Alone it is variance exploding, alpha = 1, sigma = r, and
    the model is told r.
    """

    name: str
    sigma_min: float
    sigma_max: float
    rho: float = math.inf  # inf: geometric, the limit of Karras' formula
    base: DiscreteSchedule | None = None
    quantile: tuple[float, float] | None = None  # (alpha, beta) of a beta distribution, instead of rho
    sigma_data: float | None = None  # EDM: the state is c_in times alpha = 1's

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"schedule {self.name}: expected 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )
        if not self.rho > 0:
            raise ValueError(f"schedule {self.name}: expected rho > 0, got {self.rho}")

    def ratio(self, ramp: float) -> float:
        """sigma/alpha at ramp in [0, 1] (Karras et al. 2022, equation (5))."""
        if ramp in (0, 1):  # exact at both ends
            return self.sigma_min if ramp else self.sigma_max
        if self.quantile is not None:
            return self.sigma_min + _beta_quantile(1 - ramp, *self.quantile) * (
                self.sigma_max - self.sigma_min
            )
        if math.isinf(self.rho):
            return math.exp((1 - ramp) * math.log(self.sigma_max) + ramp * math.log(self.sigma_min))
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return float((high + ramp * (low - high)) ** self.rho)

    def at(self, ratio: float) -> tuple[float, tuple[float, float]]:
        if self.base is not None:
            return self.base.at(ratio)
        if self.sigma_data is None:
            return ratio, (1.0, ratio)
        alpha = 1 / math.hypot(ratio, self.sigma_data)
        return math.log(ratio) / 4, (alpha, ratio * alpha)

    def grid(self, steps: Steps, place: Placement = EVENLY, final: Final = "zero") -> Grid:
        if not isinstance(steps, int):
            raise ValueError(f"schedule {self.name}: it chooses its own timesteps; pass a number of steps")
        check_steps(steps)
        ratios = [self.ratio(k / max(steps - 1, 1)) for k in range(steps)]
        last = 0.0 if ends_at_zero(final) else self.sigma_min
        if self.sigma_data is not None:
            alphas = [1 / math.hypot(r, self.sigma_data) for r in ratios]
            ends = (*alphas, 1.0), (*(r * a for r, a in zip(ratios, alphas, strict=True)), last)
            return Grid(tuple(math.log(r) / 4 for r in ratios), *ends)
        if self.base is None:
            return Grid(tuple(ratios), (1.0,) * (steps + 1), (*ratios, last))
        return Grid(tuple(map(self.base.time, ratios)), *columns([vp_level(r) for r in (*ratios, last)]))

    def solver_times(self, times: tuple[float, ...]) -> tuple[float, ...]:
        """Trap: diffusers rounds Karras timesteps, but not on the cosine schedule; other fractions are cut off."""
        if self.base is None:
            return times  # no peer: the model is told sigma
        if self.name in ("karras", "lu") and self.base.name != "cosine":
            return tuple(float(round(t)) for t in times)
        return super().solver_times(times)


def karras(
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    *,
    base: DiscreteSchedule | None = None,
) -> SigmaSchedule:
    """r_k = (r_max^(1/rho) + k/(S-1) (r_min^(1/rho) - r_max^(1/rho)))^rho (Karras et al. 2022, equation (5)).

    Without a base the limits default to 0.002 and 80 (EDM), with one to the base's own (diffusers'
    `use_karras_sigmas`).
    """
    return SigmaSchedule("karras", *_limits(sigma_min, sigma_max, base), rho=rho, base=base)


def exponential(
    sigma_min: float | None = None, sigma_max: float | None = None, *, base: DiscreteSchedule | None = None
) -> SigmaSchedule:
    """ln r_k linear in k, limits as in `karras`; diffusers' `use_exponential_sigmas`."""
    return SigmaSchedule("exponential", *_limits(sigma_min, sigma_max, base), base=base)


def lu(
    sigma_min: float | None = None, sigma_max: float | None = None, *, base: DiscreteSchedule | None = None
) -> SigmaSchedule:
    """lambda = -ln r linear in k (Lu et al. 2022, section 4): `exponential`, with the timesteps rounded as Karras'.

    diffusers' `use_lu_lambdas`.
    """
    return SigmaSchedule("lu", *_limits(sigma_min, sigma_max, base), base=base)


def beta(
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    alpha: float = 0.6,
    beta: float = 0.6,
    *,
    base: DiscreteSchedule | None = None,
) -> SigmaSchedule:
    """r_k = r_min + (r_max - r_min) Q(1 - k/(S-1)), Q the quantile function of the Beta(alpha, beta) distribution.

    Lee et al. 2024, "Beta Sampling is All You Need" (arXiv 2407.12173); diffusers' `use_beta_sigmas`. Needs scipy.
    """
    return SigmaSchedule("beta", *_limits(sigma_min, sigma_max, base), base=base, quantile=(alpha, beta))


def edm(
    sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, *, sigma_data: float = 0.5
) -> SigmaSchedule:
    """`karras` without a base, for networks with EDM's preconditioning (Karras et al. 2022, table 1).

    The state is what such a network sees, c_in (x0 + sigma eps): alpha = c_in = 1/sqrt(sigma^2 + sigma_data^2)
    (sigma and 1 at the end point), the model is told ln(sigma)/4, and predicts "edm". rho = inf spaces
    geometrically.
    """
    return SigmaSchedule("edm", sigma_min, sigma_max, rho=rho, sigma_data=sigma_data)


def _beta_quantile(p: float, alpha: float, beta: float) -> float:
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise ImportError('beta schedules need scipy: pip install "torch-fastdiff[beta]"') from error
    return float(betaincinv(alpha, beta, p))


def _limits(
    sigma_min: float | None, sigma_max: float | None, base: DiscreteSchedule | None
) -> tuple[float, float]:
    low, high = (
        (0.002, 80.0)
        if base is None
        else (level_ratio(*base.level(t)) for t in (0, base.num_train_timesteps - 1))
    )
    return low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
