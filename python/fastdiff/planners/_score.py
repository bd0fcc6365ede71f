# SPDX-License-Identifier: Apache-2.0
"""Steps of score-based sampling: what `reverse_sde` and `langevin` share.

The score is grad ln p(x) = -eps/sigma. The forward SDE dx = f x dt + g dW leads from a level t to a noisier s by

    x_s = a x_t + b z    a = alpha_s/alpha_t    b^2 = sigma_s^2 - a^2 sigma_t^2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fastdiff.planners._tables import Level, Table, combine, conversion, set_x0, timestep_tensor, x0_rows
from fastdiff.planners.plan import Plan

Kind = Literal["reverse_diffusion", "euler_maruyama", "ancestral"]
Variance = Literal["small", "large"]
Rate = tuple[float, float]  # f dt, g^2 dt


@dataclass(frozen=True)
class Predictor:
    """One step of the reverse SDE; the formulas are in `reverse_sde`."""

    kind: Kind
    kappa: float = 1.0
    variance: Variance = "small"

    def __post_init__(self) -> None:
        if self.kind not in ("reverse_diffusion", "euler_maruyama", "ancestral"):
            raise ValueError(
                f"predictor: expected reverse_diffusion, euler_maruyama or ancestral, got {self.kind!r}"
            )
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa: expected 0 to 1, got {self.kappa}")
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance: expected small or large, got {self.variance!r}")
        if self.kind == "ancestral" and self.kappa != 1:
            raise ValueError(
                "kappa: an ancestral step is that of the SDE, kappa = 1; eta of `ddim` goes between"
            )
        if self.kind != "ancestral" and self.variance != "small":
            raise ValueError(f"variance: it is a choice of ancestral steps, {self.kind} has one")

    def rows(self, prediction: str) -> tuple[str, ...]:
        """The rows that `set` fills."""
        return (*x0_rows(prediction), "x'") if self.kind == "ancestral" else ("x'",)

    def set(
        self, table: Table, i: int, prediction: str, s: Level, t: Level, rate: Rate | None, *, noisy: bool
    ) -> None:
        """The rows of the step from s to t."""
        a = s[0] / t[0]
        variance = max(s[1] ** 2 - (a * t[1]) ** 2, 0.0)  # b^2
        if self.kind == "ancestral":
            # The mean (x + b^2 score)/a as that of q(x_t | x_s, x0), which is exact at alpha_s = 0 too.
            share = variance / s[1] ** 2
            set_x0(table, i, prediction, s)
            mean = {"x": a * (t[1] / s[1]) ** 2, "x0": t[0] * share}
            deviation = math.sqrt(variance) * (t[1] / s[1] if self.variance == "small" else 1.0)
        else:
            drift, diffusion = (a - 1, variance) if self.kind == "reverse_diffusion" else rate or rates(s, t)
            weight = (1 + self.kappa**2) / 2 * diffusion
            mean = combine((1 - drift, {"x": 1.0}), (weight, score(prediction, s)))
            deviation = self.kappa * math.sqrt(diffusion)
        table.set(i, "x'", mean | {"z": deviation * noisy})


def rates(s: Level, t: Level) -> Rate:
    """(f dt, g^2 dt) from t to s: ln(alpha_s/alpha_t), and the trapezoidal rule on g^2 dt = d sigma^2 - 2 f sigma^2 dt.

    Raises:
        ValueError: an infinite drift, from alpha = 0.
    """
    if s[0] == 0:
        raise ValueError(
            "euler_maruyama: the drift is infinite where alpha = 0; use reverse_diffusion or ancestral"
        )
    drift = math.log(s[0] / t[0])
    return drift, s[1] ** 2 - t[1] ** 2 - drift * (s[1] ** 2 + t[1] ** 2)


def score(prediction: str, level: Level) -> dict[str, float]:
    """-eps/sigma as terms in x and prediction."""
    if prediction == "score":
        return {"prediction": 1.0}
    eps = {"prediction": 1.0} if prediction == "epsilon" else conversion(prediction, level)[1]
    return combine((-1 / level[1], eps))


def plan_of(
    solver: str,
    prediction: str,
    table: Table,
    inputs: Sequence[str],
    times: Sequence[float],
    levels: Sequence[Level],
) -> Plan:
    """The plan, which starts from the prior of the paper: N(0, sigma^2) where alpha = 1, N(0, 1) on a VP schedule."""
    alphas, sigmas = zip(*levels, strict=True)
    return Plan(
        solver=solver,
        table=table.data,
        timesteps=timestep_tensor(times),
        alphas=torch.tensor(alphas, dtype=torch.float64),
        sigmas=torch.tensor(sigmas, dtype=torch.float64),
        inputs=tuple(inputs),
        rows=tuple(table.rows),
        carry={"x": "x'"},
        prediction=prediction,
        order=1,
        init_noise_sigma=sigmas[0] if alphas[0] == 1 else math.hypot(alphas[0], sigmas[0]),
    )
