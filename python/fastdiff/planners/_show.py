# SPDX-License-Identifier: Apache-2.0
"""A plan as readable equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SYMBOLS = {  # of the network's prediction
    "epsilon": "ε",
    "x0": "p",
    "v": "v",
    "flow": "u",
    "reverse_flow": "u",
    "edm": "F",
    "edm_v": "F",
    "score": "s",
}


def symbols(names: Sequence[str], prediction: str) -> list[str]:
    """Short names for the columns of a table."""
    p = _SYMBOLS[prediction]
    short = {"prediction": p, "uncond": f"{p}_u", "cond": f"{p}_c", "noise": "z"}
    return [short.get(name, name) for name in names]


def reading_order(inputs: Sequence[str], rows: Sequence[str], history: Sequence[str]) -> list[int]:
    """Columns as one reads them: x, prediction, rows, history, noise."""
    columns = [*inputs, *rows, "z"]
    late = [*rows, *history, "noise", "z"]
    return [
        columns.index(name)
        for name in (*(c for c in columns if c not in late), *(c for c in late if c in columns))
    ]


def equation(columns: Sequence[str], order: Sequence[int], row: str, coefficients: Sequence[float]) -> str:
    """`x ← 0.8123 x + 0.2311 x0` (x' is the next x) or `x0 = clamp(…, −1, 1)`; zero terms are left out."""
    *weights, low, high = coefficients
    terms = [(weights[k], columns[k]) for k in order if weights[k]]
    value = " ".join(_term(w, c, first=n == 0) for n, (w, c) in enumerate(terms)) or "0"
    if not (math.isinf(low) and math.isinf(high)):
        value = f"clamp({value}, {_number(low)}, {_number(high)})"
    return f"{row[:-1]} ← {value}" if row.endswith("'") else f"{row} = {value}"


def thresholded(equation: str, ratio: float) -> str:
    """`x0 = threshold(…, 0.995)`."""
    name, value = equation.split(" = ", 1)
    return f"{name} = threshold({value}, {_number(ratio)})"


def _term(weight: float, name: str, *, first: bool) -> str:
    sign = ("−" if weight < 0 else "") if first else ("− " if weight < 0 else "+ ")
    return f"{sign}{name}" if abs(weight) == 1 else f"{sign}{_number(abs(weight))} {name}"


def _number(value: float) -> str:
    """Five digits: enough to recognise a coefficient, few enough to read a line."""
    return f"{value:.5g}".replace("-", "−").replace("inf", "∞")
