# SPDX-License-Identifier: Apache-2.0
"""The operators under contract, found by looking: every module of a family that lists its cases().

Besides ``cases()`` and ``reference()``, a module says what is particular to its operator:

    IN_PLACE = False        ``out`` must not share memory with an input (default: it may be exactly one of them)
    SAME_BITS = False       CUDA adds in another order than the CPU (default: all backends give the same bits)
    DOUBLES = False         no float64, and so no finite differences: its gradients are in tests of its own
    INTEGERS = True         sums of integers, by kernels of their own for VNNI and AMX (default: as on AVX2, AVX-512)
    uses_tiles(*args, **kwargs)  whether AMX has sums in an order of its own for a call (default: as on AVX-512)
    straight_through(*args, **kwargs)  for a staircase: what it is differentiated as, in plain PyTorch
    tolerance(*args, **kwargs)  ``scale`` and ``terms`` of :func:`tests.kit.compare.assert_close` for one call
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from fastdiff._case import Case
from torch import Tensor

from tests.kit.trees import as_tuple, tensors_of

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
    def function(self) -> Callable[..., Any]:
        """The public function: it returns a tensor or a tuple of them."""
        function: Callable[..., Any] = getattr(self.module, self.name)
        return function

    def __call__(self, *args: Any, out: Sequence[Tensor] | None = None, **kwargs: Any) -> tuple[Tensor, ...]:
        """The public function's results as a tuple, with ``out`` as it takes it: one tensor or a list."""
        if out is not None:
            kwargs["out"] = out[0] if self.returns_one else list(out)
        return as_tuple(self.function(*args, **kwargs))

    def cases(self) -> Sequence[Case]:
        cases: Sequence[Case] = self.module.cases()
        return cases

    def reference(self, case: Case) -> tuple[Tensor, ...]:
        """The result in plain PyTorch and float64, rounded to the stored dtypes."""
        return as_tuple(self.module.reference(*case.args, **case.kwargs))

    def inputs(self, case: Case) -> list[Tensor]:
        """The tensors that the operator works on: its first argument if that is a list, else all positional ones."""
        first = case.args[0]
        return list(tensors_of(case.args if isinstance(first, Tensor) else first))

    def raw(self, overload: str = "default") -> Any:
        return getattr(getattr(torch.ops.fastdiff, self.name), overload)

    @property
    def returns_one(self) -> bool:
        """One tensor, and so ``out`` is one; the others have tuples and lists."""
        returned = self.raw()._schema.returns
        return len(returned) == 1 and isinstance(returned[0].type, torch._C.TensorType)

    def out_arguments(self, out: Sequence[Tensor]) -> dict[str, Any]:
        """``out`` as the arguments of the operator's out variant: the ones that its schema says it writes."""
        written = [a for a in self.raw("out")._schema.arguments if a.alias_info and a.alias_info.is_write]
        if len(written) == 1 and isinstance(written[0].type, torch._C.ListType):
            return {written[0].name: list(out)}
        return {argument.name: tensor for argument, tensor in zip(written, out, strict=True)}

    @property
    def works_in_place(self) -> bool:
        """``out`` may be exactly one of the inputs."""
        return bool(getattr(self.module, "IN_PLACE", True))

    @property
    def is_differentiable(self) -> bool:
        """Its gradients are in a file of their own."""
        return importlib.util.find_spec(f"{self.module.__name__}_grad") is not None

    @property
    def gives_the_same_bits(self) -> bool:
        """On the CPU and on CUDA; all instruction sets of the CPU agree in any case, but see uses_tiles()."""
        return bool(getattr(self.module, "SAME_BITS", True))

    def uses_tiles(self, case: Case) -> bool:
        """On AMX the case is computed by its tiles, in an order of their own."""
        uses_tiles: Callable[..., bool] | None = getattr(self.module, "uses_tiles", None)
        return uses_tiles is not None and uses_tiles(*case.args, **case.kwargs)

    def has_kernels_for(self, isa: str, case: Case) -> bool:
        """Whether one instruction set runs anything but the kernels of AVX2 or AVX-512 for this case."""
        integers = bool(getattr(self.module, "INTEGERS", False))
        if isa == "amx":
            return integers or self.uses_tiles(case)
        return integers or not isa.endswith("_vnni")

    @property
    def has_doubles(self) -> bool:
        """It computes in float64 too."""
        return bool(getattr(self.module, "DOUBLES", True))

    @property
    def straight_through(self) -> Callable[..., Tensor] | None:
        """Has its gradient in the place of its own, which is 0 almost everywhere; None: its own is meant."""
        function: Callable[..., Tensor] | None = getattr(self.module, "straight_through", None)
        return function

    @property
    def gradient_orders(self) -> int:
        """1: gradients of gradients are not defined."""
        return int(getattr(importlib.import_module(f"{self.module.__name__}_grad"), "ORDERS", 2))

    def tolerance(self, case: Case) -> dict[str, float]:
        """By how much a result may differ from the reference: see the head of this file."""
        own: Callable[..., dict[str, float]] | None = getattr(self.module, "tolerance", None)
        return own(*case.args, **case.kwargs) if own else {"scale": _largest(case) ** 2 * 8, "terms": 16}


def _largest(case: Case) -> float:
    """Magnitude of the numbers that enter, for the error bound."""
    finite = [
        t.double().nan_to_num(0, 0, 0).abs().max()
        for t in tensors_of(case.args)
        if t.numel() and not t.is_complex()
    ]
    return max(1.0, *(float(m) for m in finite)) if finite else 4.0


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
