# SPDX-License-Identifier: Apache-2.0
"""The posterior of a cleaner level t given level s: what DDPM and DDIM with noise share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.planners._tables import Level


@dataclass(frozen=True)
class Posterior:
    """q(x_t | x_s, x0) = N(x x_s + x0 x0, small^2), t being the cleaner level.

    Ho et al. 2020, equations (6) and (7), written for any alpha and sigma, r = (alpha_s/sigma_s) / (alpha_t/sigma_t):

        x  = r sigma_t/sigma_s      small = sigma_t sqrt(1 - r^2)
        x0 = alpha_t (1 - r^2)      large = sigma_s sqrt(1 - r^2)

    For a variance preserving process small^2 is beta~_t and large^2 is beta_t: the variance of x_t given x_s alone if
    the data is one point, and if it is standard normal (section 3.2).

    Raises:
        ValueError: t is noisier than s.
    """

    s: Level
    t: Level

    def __post_init__(self) -> None:
        if self.r > 1:
            raise ValueError("schedule: noise is added between levels that decrease, these increase")

    @property
    def r(self) -> float:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.s, self.t
        return alpha_s * sigma_t / (sigma_s * alpha_t)

    @property
    def x(self) -> float:
        return self.r * self.t[1] / self.s[1]

    @property
    def x0(self) -> float:
        return self.t[0] * self._rest

    @property
    def small(self) -> float:
        return self.t[1] * math.sqrt(self._rest)

    @property
    def large(self) -> float:
        return self.s[1] * math.sqrt(self._rest)

    @property
    def _rest(self) -> float:
        return (1 - self.r) * (1 + self.r)
