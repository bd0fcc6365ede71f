# SPDX-License-Identifier: Apache-2.0
"""A sample call of an operator: what each op's ``cases()`` lists, and what tests, opcheck and benchmarks consume."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """``op(*args, **kwargs)``; tensors are on the CPU."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name
