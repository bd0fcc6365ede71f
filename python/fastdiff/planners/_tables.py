# SPDX-License-Identifier: Apache-2.0
"""What planners are made of: prediction types as coefficients, phi functions, a table filled by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from fastdiff.schedules import Grid

Pair = tuple[float, float]  # coefficients of (x, prediction)
Level = tuple[float, float]  # alpha, sigma

ALIASES = {"sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
PREDICTIONS = ("epsilon", "x0", "v", "flow", "reverse_flow", "edm", "edm_v", "score")


def prediction_type(name: str) -> str:
    """The canonical name: epsilon, x0, v, flow, reverse_flow, edm, edm_v or score; diffusers' names are accepted.

    Raises:
        ValueError: unknown name.
    """
    canonical = ALIASES.get(name, name)
    if canonical not in PREDICTIONS:
        raise ValueError(f"prediction: expected one of {', '.join((*PREDICTIONS, *ALIASES))}, got {name!r}")
    return canonical


def x0_and_eps(prediction: str, alpha: float, sigma: float) -> tuple[Pair, Pair]:
    """x0 and eps, each as coefficients of (x, prediction).

    Solved from x = alpha x0 + sigma eps and what the prediction is:

    - epsilon: eps
    - x0:      x0
    - v:       (alpha eps - sigma x0)/s, s = sqrt(alpha^2 + sigma^2) (Salimans and Ho 2022, appendix D)
    - flow:    eps - x0 (rectified flow, Liu et al. 2023, equation (1), time reversed); reverse_flow: x0 - eps
    - edm:     F of x0 = c_skip x/c_in + c_out F (Karras et al. 2022, table 1), x being c_in times the noisy data:
               alpha = c_in and sigma^2 + alpha^2 sigma_data^2 = 1. edm_v: -F, which is v where sigma_data = 1
    - score:   grad ln p(x) = -eps/sigma (Song et al. 2021, "Score-Based Generative Modeling through SDEs")

    Raises:
        ValueError: the prediction does not determine x0 at this level (epsilon at alpha = 0, x0 at sigma = 0).
    """
    a, s = alpha, sigma
    if prediction in ("epsilon", "score"):
        if a == 0:
            raise ValueError(
                f"prediction {prediction}: x0 is undetermined where alpha = 0; use v, x0 or flow there"
            )
        weight = 1.0 if prediction == "epsilon" else -s
        return (1 / a, -s * weight / a), (0.0, weight)
    if prediction == "x0":
        if s == 0:
            raise ValueError(
                "prediction x0: eps is undetermined where sigma = 0; use epsilon, v or flow there"
            )
        return (0.0, 1.0), (1 / s, -a / s)
    if prediction in ("edm", "edm_v"):
        rest, sign = math.sqrt((1 - s) * (1 + s)), 1 if prediction == "edm" else -1  # rest = alpha sigma_data
        return (rest * rest / a, sign * s * rest / a), (s, -sign * rest)
    if prediction == "v":
        square, norm = a * a + s * s, math.hypot(a, s)
        return (a / square, -s / norm), (s / square, a / norm)
    sign = -1 if prediction == "reverse_flow" else 1
    return (1 / (a + s), -sign * s / (a + s)), (1 / (a + s), sign * a / (a + s))


def phi(k: int, z: float) -> float:
    """phi_1(z) = (e^z - 1)/z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z, to full precision.

    The recursion loses k digits per decade below |z| = 1, so the series sum_n z^n / (n+k)! takes over there.
    """
    if abs(z) < 1:
        terms = [1 / math.factorial(k)]
        while abs(terms[-1]) > 1e-18:
            terms.append(terms[-1] * z / (len(terms) + k))
        return math.fsum(terms)
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def combine(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """sum of factor x terms, by the names of the terms."""
    total: dict[str, float] = {}
    for factor, terms in parts:
        for name, weight in terms.items():
            total[name] = total.get(name, 0.0) + factor * weight
    return total


def x0_rows(kind: str) -> tuple[str, ...]:
    """The rows that `set_x0` fills: where x0 = (x - sigma eps)/alpha, one for the difference.

    sigma/alpha is 157 at the last timestep of the linear schedule and 20000 on the cosine one. x0 as one row has two
    coefficients of that size, each rounded to float32, whose terms nearly cancel: an error of 157 roundoffs. In
    d = x - sigma eps the coefficient of x is exact and the difference is rounded once, at its own size.
    """
    return ("d", "x0") if kind in ("epsilon", "score") else ("x0",)


def set_x0(table: Table, i: int, kind: str, level: Level, clamp: tuple[float, float] | None = None) -> None:
    """The row x0 of step i, with the row d if the table has it."""
    if "d" in table.rows:
        alpha, sigma = level
        _, (_, eps) = x0_and_eps(kind, alpha, sigma)  # refuses alpha = 0
        table.set(i, "d", {"x": 1.0, "prediction": -sigma * eps})
        table.set(i, "x0", {"d": 1 / alpha}, clamp=clamp)
    else:
        table.set(i, "x0", conversion(kind, level)[0], clamp=clamp)


def set_next_x(table: Table, i: int, terms: Mapping[str, float]) -> None:
    """The rows dx and x' of step i: x' = terms.

    Rounded to float32, a coefficient near 1 would move x by half a roundoff, the same way in every element. In a short
    step x is therefore changed by dx, whose coefficients and roundings are small.
    """
    if 0.5 < terms.get("x", 0.0) < 2:
        table.set(i, "dx", combine((1, terms), (-1, {"x": 1.0})))
        terms = {"x": 1.0, "dx": 1.0}
    table.set(i, "x'", terms)


def levels_of(grid: Grid) -> list[Level]:
    """[(alpha, sigma)] of the S evaluations and the end point."""
    return list(zip(grid.alphas, grid.sigmas, strict=True))


def conversion(kind: str, level: Level) -> tuple[dict[str, float], dict[str, float]]:
    """x0 and eps as terms in x and prediction."""
    (x0, e) = x0_and_eps(kind, *level)
    return {"x": x0[0], "prediction": x0[1]}, {"x": e[0], "prediction": e[1]}


class Table:
    """The coefficients of S steps, float64 [S, M, K+M+3], filled by the names of their columns.

    Columns: the K input slots, the M rows (a row may use the rows above it), z, and the bounds lo and hi.
    """

    def __init__(self, steps: int, inputs: Sequence[str], rows: Sequence[str]) -> None:
        self.columns = {name: k for k, name in enumerate((*inputs, *rows, "z"))}
        self.rows = {name: i for i, name in enumerate(rows)}
        self.data = torch.zeros(steps, len(rows), len(self.columns) + 2, dtype=torch.float64)
        self.data[..., -2], self.data[..., -1] = -math.inf, math.inf

    def set(
        self, step: int, row: str, terms: Mapping[str, float], *, clamp: tuple[float, float] | None = None
    ) -> None:
        """row = clamp( sum of coefficient x column ) at this step; columns left out are zero."""
        target = self.data[step, self.rows[row]]
        for name, coefficient in terms.items():
            target[self.columns[name]] = coefficient
        if clamp is not None:
            target[-2], target[-1] = clamp


def clamp_range(clip: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """The bounds of x0: r means (-r, r).

    Raises:
        ValueError: an empty range.
    """
    if clip is None:
        return None
    low, high = clip if isinstance(clip, (tuple, list)) else (-clip, clip)
    if not low < high:
        raise ValueError(f"clip_sample: expected a positive range or (low, high), got {clip}")
    return float(low), float(high)


def clip_or_threshold(
    clip: float | tuple[float, float] | None, threshold: object | None
) -> tuple[float, float] | None:
    """The bounds of x0, where no threshold takes their place.

    Raises:
        ValueError: both, or an empty range.
    """
    if clip is not None and threshold is not None:
        raise ValueError("clip_sample, threshold: pass one or the other")
    return clamp_range(clip)


def timestep_tensor(times: Sequence[float]) -> torch.Tensor:
    """int64 [S] if every time is a whole number, else float64 [S]."""
    whole = all(float(t).is_integer() for t in times)
    return torch.tensor(
        [int(t) for t in times] if whole else times, dtype=torch.int64 if whole else torch.float64
    )
