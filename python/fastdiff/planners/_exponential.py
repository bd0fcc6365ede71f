# SPDX-License-Identifier: Apache-2.0
"""Exponential integrators in lambda = ln(alpha/sigma): what the DPM-Solvers, UniPC, DEIS and SA-Solver share.

The linear part of the diffusion equation is solved exactly, and what the network says, m(lambda), is a polynomial over
one step from s to t, h = lambda_t - lambda_s:

    x_t = a x_s + sum_i K_i m^(i)(lambda_s) + n z,    K_i = w h^(i+1) phi_(i+1)(-c h)

Four forms, with m the data prediction x0 or the noise prediction eps, along the ODE (tau = 0) or the SDE of
Xue et al. 2023 (SA-Solver), whose tau = 1 is that of SDE-DPM-Solver; c = 1 + tau^2:

    data    a = (sigma_t/sigma_s) e^(-tau^2 h)    K_i = alpha_t c h^(i+1) phi_(i+1)(-c h)
            n = sigma_t sqrt(1 - e^(-2 tau^2 h))
    noise   a = alpha_t/alpha_s                   K_i = -sigma_t c h^(i+1) phi_(i+1)(h)
            n = sigma_t tau sqrt(e^(2h) - 1)

Lu et al. 2022a, equation (3.4) (noise); Lu et al. 2022b, equation (9) (data).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from fastdiff.planners._tables import Level, phi
from fastdiff.schedules._grid import half_log_snr

TwoPoint = Literal["exact", "bh1", "bh2"]


@dataclass(frozen=True)
class Interval:
    """One step from level s to level t of an integrator in data or noise form.

    Attributes:
        x: a, the weight of x_s.
        first: K_0, the weight of m at s in a step of order 1. In forms that stay exact at sigma_t = 0.
        noise: n.
        h: lambda_t - lambda_s; infinite where alpha_s = 0 or sigma_t = 0.
    """

    s: Level
    t: Level
    data: bool
    tau: float = 0.0

    @property
    def h(self) -> float:
        return half_log_snr(*self.t) - half_log_snr(*self.s)

    @property
    def _decay(self) -> float:
        """e^-h, without logarithms."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.s, self.t
        return alpha_s * sigma_t / (sigma_s * alpha_t)

    @property
    def x(self) -> float:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.s, self.t
        if not self.data:
            return alpha_t / alpha_s
        return sigma_t / sigma_s * math.pow(self._decay, self.tau**2)

    @property
    def first(self) -> float:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.s, self.t
        c = 1 + self.tau**2
        if not self.data:
            return c * (sigma_t - alpha_t * sigma_s / alpha_s)
        if self.tau == 0:
            return alpha_t - sigma_t * alpha_s / sigma_s
        return -alpha_t * math.expm1(-c * self.h)

    @property
    def noise(self) -> float:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.s, self.t
        if self.tau == 0:
            return 0.0
        if self.data:
            return sigma_t * math.sqrt(-math.expm1(-2 * self.tau**2 * self.h)) if sigma_t else 0.0
        return self.tau * math.sqrt(max((alpha_t * sigma_s / alpha_s) ** 2 - sigma_t**2, 0.0))

    def taylor(self, i: int) -> float:
        """K_i / h^i, so that it is the weight of h^i m^(i)."""
        if i == 0:
            return self.first
        c = 1 + self.tau**2
        if self.data:
            return self.t[0] * c * self.h * phi(i + 1, -c * self.h)
        return -self.t[1] * c * self.h * phi(i + 1, self.h)

    def interpolated(self, points: Sequence[float]) -> list[float]:
        """Weights of m at these points, where the polynomial through all of them is integrated exactly.

        They solve the moment conditions sum_j w_j (d_j/h)^i / i! = K_i/h^i, i < n, with d_j = lambda_j - lambda_s.
        The Adams methods in lambda; what DEIS calls log rho.
        """
        ratios = (np.array(points) - half_log_snr(*self.s)) / self.h
        moments = [ratios**i / math.factorial(i) for i in range(len(points))]
        weights: list[float] = np.linalg.solve(moments, [self.taylor(i) for i in range(len(points))]).tolist()
        return weights

    def adams(self, points: Sequence[float], two_point: TwoPoint) -> list[float]:
        """Weights of m at these points, newest first; one point alone has the weight K_0.

        For two points, s and another, the weight K_1 = h taylor(1) of m' may be replaced by B/2, which is as much to
        first order in h: B = K_0 (bh2), or what K_0 would be with phi_1 = 1 (bh1). Zhao et al. 2023, section 3.
        """
        if len(points) == 1:
            return [self.first]
        if len(points) != 2 or two_point == "exact":
            return self.interpolated(points)
        here = min((0, 1), key=lambda n: abs(points[n] - half_log_snr(*self.s)))
        reach = (points[1 - here] - points[here]) / self.h
        slope = (self.first if two_point == "bh2" else self._straight) / 2 / reach
        weights = [slope, slope]
        weights[here] = self.first - slope
        return weights

    @property
    def _straight(self) -> float:
        """K_0 with phi_1 = 1: c h alpha_t or -c h sigma_t."""
        return (1 + self.tau**2) * self.h * (self.t[0] if self.data else -self.t[1])


def finite_history(lambdas: Sequence[float], i: int, order: int) -> int:
    """The order that evaluation i can have: it needs as many finite, distinct lambdas behind it and in front."""
    if math.isinf(lambdas[i + 1]) or lambdas[i + 1] == lambdas[i]:
        return 1
    behind = 0
    for later, earlier in pairwise([lambdas[n] for n in range(i, -1, -1)]):
        if math.isinf(earlier) or later == earlier:
            break
        behind += 1
    return min(order, 1 + behind)
