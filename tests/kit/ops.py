# SPDX-License-Identifier: Apache-2.0
"""The operators under contract, found by looking: every module of a family that lists its cases()."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from fastdiff._case import Case
from torch import Tensor

FAMILIES = ("solver", "guidance", "attention", "wavelet", "quant")


@dataclass(frozen=True)
class Op:
    """One operator: its room in Python, and how to call it."""

    family: str
    name: str
    module: ModuleType

    def __str__(self) -> str:
        return self.name

    @property
    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The public function."""
        function: Callable[..., tuple[Tensor, ...]] = getattr(self.module, self.name)
        return function

    def cases(self) -> Sequence[Case]:
        cases: Sequence[Case] = self.module.cases()
        return cases

    def reference(self, case: Case) -> tuple[Tensor, ...]:
        """The result in plain PyTorch and float64, rounded to the stored dtypes."""
        result: tuple[Tensor, ...] = self.module.reference(*case.args, **case.kwargs)
        return result

    def raw(self, overload: str = "default") -> Any:
        return getattr(getattr(torch.ops.fastdiff, self.name), overload)


def find() -> list[Op]:
    found = []
    for family in FAMILIES:
        try:
            package = importlib.import_module(f"fastdiff.{family}")
        except ModuleNotFoundError:
            continue  # a family that does not exist yet
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"fastdiff.{family}.{info.name}")
            if hasattr(module, "cases"):
                found.append(Op(family, info.name, module))
    return found


OPS = find()
CASES = [(op, case) for op in OPS for case in op.cases()]


def case_id(value: object) -> str:
    return str(value).replace(" ", "_")
