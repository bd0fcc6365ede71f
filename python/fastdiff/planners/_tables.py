# SPDX-License-Identifier: Apache-2.0
"""What planners are made of: prediction types as coefficients, phi functions, a table filled by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

Pair = tuple[float, float]  # coefficients of (x, prediction)

ALIASES = {"sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
PREDICTIONS = ("epsilon", "x0", "v", "flow")


def prediction_type(name: str) -> str:
    """The canonical name: epsilon, x0, v or flow; diffusers' names are accepted.

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
    - flow:    eps - x0 (rectified flow, Liu et al. 2023, equation (1), time reversed)

    Raises:
        ValueError: the prediction does not determine x0 at this level (eps at alpha = 0).
    """
    a, s = alpha, sigma
    if prediction == "epsilon":
        if a == 0:
            raise ValueError(
                "prediction epsilon: x0 is undetermined where alpha = 0; use v, x0 or flow there"
            )
        return (1 / a, -s / a), (0.0, 1.0)
    if prediction == "x0":
        return (0.0, 1.0), (1 / s, -a / s)
    if prediction == "v":
        square, norm = a * a + s * s, math.hypot(a, s)
        return (a / square, -s / norm), (s / square, a / norm)
    return (1 / (a + s), -s / (a + s)), (1 / (a + s), a / (a + s))


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
    low, high = clip if isinstance(clip, tuple) else (-clip, clip)
    if not low < high:
        raise ValueError(f"clip_sample: expected a positive range or (low, high), got {clip}")
    return float(low), float(high)


def timestep_tensor(times: Sequence[float]) -> torch.Tensor:
    """int64 [S] if every time is a whole number, else float64 [S]."""
    whole = all(float(t).is_integer() for t in times)
    return torch.tensor(
        [int(t) for t in times] if whole else times, dtype=torch.int64 if whole else torch.float64
    )
