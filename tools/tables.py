# SPDX-License-Identifier: Apache-2.0
"""How the tools beside this file write tables and times."""

from __future__ import annotations

from collections.abc import Sequence

Cells = Sequence[str]


def markdown_table(heads: Cells, rows: Sequence[Cells]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def time_text(seconds: float) -> str:
    unit, name = next(
        (pair for pair in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= pair[0]), (1e-6, "µs")
    )
    return f"{seconds / unit:.3g} {name}"
